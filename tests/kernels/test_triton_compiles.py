"""Every kernel compiles for GPUs that are not here. What it computes is checked by the other tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.kernels.operations import OPERATIONS

pytest.importorskip("triton", reason="triton is not installed here")
pytestmark = [pytest.mark.slow("some three hundred compilations"), pytest.mark.timeout(1800)]

Use = tuple[Any, ...]

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # what a block may have of an A100, H100 or H200, B200
# For two of them a third of the configurations with each pair of dtypes, with the next pair the next third: nothing that is
# generated depends on all three at once, and a compilation takes half a second.
PARTS = {80: "80/3", 90: "90", 100: "100/3"}


@pytest.mark.parametrize("capability", SHARED_BYTES, ids=lambda capability: f"sm_{capability}")
def test_every_configuration_compiles_and_fits(capability: int, tmp_path: Path) -> None:
    """Some configuration of each use spills no register; float64 is for comparisons and may."""
    found = compiled(PARTS[capability], tmp_path)
    assert {use[0].split("-")[0] for use in uses_of(found)} == {each.name for each in OPERATIONS}
    # where the third has none that does, it is among the others
    unfit = sorted({use[0] for use, all_of_it in uses_of(found).items() if not fitting(use, all_of_it, capability)})
    again = compiled(str(capability), tmp_path, *unfit) if unfit and PARTS[capability] != str(capability) else []
    for use, configurations in uses_of(found + again).items():
        assert fitting(use, configurations, capability), f"{use}: every configuration takes too much memory or spills"


def compiled(which: str, folder: Path, *names: str) -> list[dict[str, Any]]:
    """What tests/kernels/compile_for_gpu.py says; ``folder`` keeps what is compiled."""
    command = [sys.executable, str(Path(__file__).with_name("compile_for_gpu.py")), which, *names]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    return [json.loads(line) for line in found.stdout.splitlines()]


def uses_of(found: list[dict[str, Any]]) -> dict[Use, list[dict[str, Any]]]:
    """The configurations of each kernel by case and flags."""
    uses: dict[Use, list[dict[str, Any]]] = {}
    for each in found:
        flags = tuple((name, value) for name, value in each["options"].items() if isinstance(value, bool))
        uses.setdefault((each["case"], each["kernel"], flags), []).append(each)
    return uses


def fitting(use: Use, configurations: list[dict[str, Any]], capability: int) -> bool:
    fit = [each for each in configurations if each["shared"] <= SHARED_BYTES[capability]]
    return bool(fit) and ("float64" in use[0] or any(each["spilled"] == 0 for each in fit))
