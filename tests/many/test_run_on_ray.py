"""Runs on a Ray cluster: two nodes, a worker killed, a node stopped, interrupted and gone on with; the files are the same."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from circuit_tracer.errors import CompatibilityError, InputError, ResourceError
from circuit_tracer.many import Run
from circuit_tracer.many.runs.manifest import agree_on_fingerprints, open_manifest
from circuit_tracer.many.runs.on_ray import _Needs, run_on_ray
from circuit_tracer.many.runs.run import Progress
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.worker import UnitResult
from tests.support.command import save_folders
from tests.support.run_cases import Case, contents, prompts, table

SLOW = pytest.mark.slow("starts a Ray cluster of two nodes, whose workers load torch")
STORE_BYTES = 100 * 2**20
ROWS = 30  # ten units

Chaos = Callable[[int], None]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(save_folders(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run by this process without an interruption."""
    return case.run(tmp_path_factory.mktemp("runs") / "whole", prompts(ROWS))


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A cluster of one node, with room for one worker."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token would be written to the home folder
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


def actors_of(node: Any) -> list[psutil.Process]:
    """Processes of workers that are at work on a node."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for process in psutil.Process(raylet).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("Actor" in part for part in process.cmdline()):
                found.append(process)
    return found


def disturbed(chaos: Chaos, ends: dict[str, int], cluster: str) -> Callable[[str, Sequence[str]], Iterator[UnitResult]]:
    """The engine, with something happening after each unit; ends: the file (inode) of each record as it was reported."""

    def engine(address: str, units: Sequence[str]) -> Iterator[UnitResult]:
        for number, result in enumerate(run_on_ray(address, units, cluster=cluster)):
            assert result.unit not in ends
            ends[result.unit] = os.stat(Path(address) / "units" / f"{result.unit}.json").st_ino
            chaos(number)
            yield result

    return engine


@SLOW
def test_killed_stopped_and_interrupted_it_makes_the_same_files(
    case: Case, head: Any, whole: Run, tmp_path: Path
) -> None:
    second = head.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ends: dict[str, int] = {}
    lost = []

    def chaos(number: int) -> None:
        if number == 0:
            lost.extend(actors_of(head.head_node))
            lost[0].kill()
        if number == 3:
            lost.extend(actors_of(second))
            head.remove_node(second, allow_graceful=False)

    def interrupt(progress: Progress) -> None:
        if progress.now >= 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.run(tmp_path, prompts(ROWS), engine=disturbed(chaos, ends, head.address), report=interrupt)
    assert len(lost) == 2
    assert not psutil.wait_procs(lost, timeout=20)[1]
    found = case.run(tmp_path, prompts(ROWS), engine=disturbed(lambda _: None, ends, head.address))
    assert contents(tmp_path) == contents(Path(whole.address))
    assert table(found) == table(whole)
    # of what was at work when the run was interrupted, it may be done and nobody was told: at most a unit a worker
    assert ROWS // 3 - len(ends) in (0, 1)
    for unit, inode in ends.items():  # nothing that was finished was written again
        assert os.stat(tmp_path / "units" / f"{unit}.json").st_ino == inode


@SLOW
def test_results_go_to_an_address(case: Case, head: Any, whole: Run, tmp_path: Path) -> None:
    case.run(f"dir://run::file://{tmp_path}", prompts(ROWS), engine=partial(run_on_ray, cluster=head.address))
    assert contents(tmp_path / "run") == contents(Path(whole.address))


@SLOW
def test_what_a_worker_raises_is_raised_here(case: Case, head: Any, tmp_path: Path) -> None:
    agree_on_fingerprints(Store.at(tmp_path), {"tokenizer": "another"})
    with pytest.raises(CompatibilityError, match="another model, dictionary or tokenizer"):
        case.run(tmp_path, engine=partial(run_on_ray, cluster=head.address))


@SLOW
def test_workers_that_all_die_are_given_up(case: Case, head: Any, tmp_path: Path) -> None:
    ended = threading.Event()

    def kill_all() -> None:
        while not ended.wait(0.05):
            for process in actors_of(head.head_node):
                process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(
            ResourceError, match=r"opening the model cost 3 workers on Ray\. Of the last one Ray says: .*kept\."
        ):
            case.run(tmp_path, engine=partial(run_on_ray, cluster=head.address))
    finally:
        ended.set()
        killer.join()


@pytest.mark.parametrize(
    ("needs", "resources", "expected"),
    [
        (_Needs(2, 0), {"CPU": 7.0}, 3),
        (_Needs(2, 0.5), {"CPU": 7.0, "GPU": 1.0}, 2),
        (_Needs(0, 1), {"GPU": 8.0}, 8),
        (_Needs(1, 1), {"CPU": 4.0}, 1),  # it waits
        (_Needs(0, 0), {}, 1),
    ],
)
def test_there_are_as_many_workers_as_find_room(needs: _Needs, resources: dict[str, float], expected: int) -> None:
    assert needs.room(resources) == expected


def test_without_ray_or_a_cluster_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no run at"):
        list(run_on_ray(tmp_path, ["a"]))
    open_manifest(Store.at(tmp_path), {"opening": {"transcoders": "x"}}, {})
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused.*ray start --head"):
        list(run_on_ray(tmp_path, ["a"], cluster="127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"runs on Ray need the package 'ray': pip install 'circuit-tracing\[ray\]'"):
        list(run_on_ray(tmp_path, ["a"]))
