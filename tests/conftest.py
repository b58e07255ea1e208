"""Shared by all tests: no network, one thread (the tensors are tiny, and threads only wait for each other).

Triton kernels are compiled where there is a GPU, and interpreted elsewhere: decided before anything imports triton.

Of a test marked `few` the default set takes CASES of its cases, spread over all of them; the others are slow tests.

Files with slow tests are begun first, so that no worker (`make test` has several, each with whole files) is left with one
at the end. A test may take LIMIT seconds; one that takes longer is marked slow("why"), and whatever is not is named at the
end of a run.
"""

from __future__ import annotations

import gc
import os
import random
from collections import Counter, defaultdict

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from tests.support.kept import let_go

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("busy machine", deadline=None, derandomize=True)
hypothesis.settings.load_profile("busy machine")

LIMIT = 20.0
CASES = 2
GOLDEN = (5**0.5 - 1) / 2
taken: Counter[str] = Counter()  # seconds by test, of those that do not say why they take long


def pytest_sessionstart() -> None:
    gc.disable()  # what is collected stays to the end


def pytest_collection_finish() -> None:
    """Thousands of tests and the libraries are not looked through again and again for what nobody needs any more."""
    gc.enable()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = set()
    for item in items:
        for mark in item.iter_markers("slow"):
            if not mark.args:
                raise pytest.UsageError(f"{item.nodeid} does not say why it is slow: mark it slow('why')")
            long.add(item.path)
    items.sort(key=lambda item: item.path not in long)
    _leave_few(items)


def _leave_few(items: list[pytest.Item]) -> None:
    """Places whose multiples of the golden ratio have the smallest remainders: in step with no list of a product."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for alike in cases.values():
        for place in sorted(range(len(alike)), key=lambda place: place * GOLDEN % 1)[CASES:]:
            alike[place].add_marker(pytest.mark.slow(f"one of {len(alike)} cases of a test"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers are the same whichever tests ran before in this process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        let_go()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "slow" not in report.keywords:
        taken[report.nodeid] += report.duration


def unexplained() -> list[str]:
    return [f"{seconds:.0f} s {test}" for test, seconds in taken.most_common() if seconds > LIMIT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if unexplained():
        terminalreporter.section(f"over {LIMIT:.0f} s without a word why: make it faster or mark it slow('why')")
        for line in unexplained():
            terminalreporter.line(line)
