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
pytestmark = [pytest.mark.slow("some two hundred compilations"), pytest.mark.timeout(1800)]

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # what a block may have of an A100, H100 or H200, B200


@pytest.mark.parametrize("capability", SHARED_BYTES, ids=lambda capability: f"sm_{capability}")
def test_every_configuration_compiles_and_fits(capability: int, tmp_path: Path) -> None:
    """Some configuration of each use spills no register; float64 is for comparisons and may."""
    script = Path(__file__).with_name("compile_for_gpu.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), str(capability)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    uses: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in found.stdout.splitlines():
        compiled = json.loads(line)
        flags = tuple((name, value) for name, value in compiled["options"].items() if isinstance(value, bool))
        uses.setdefault((compiled["case"], compiled["kernel"], flags), []).append(compiled)
    assert {case.split("-")[0] for case, _, _ in uses} == {each.name for each in OPERATIONS}
    for use, configurations in uses.items():
        fitting = [c for c in configurations if c["shared"] <= SHARED_BYTES[capability]]
        assert fitting, f"{use}: no configuration fits into the shared memory"
        if "float64" not in use[0]:
            assert any(c["spilled"] == 0 for c in fitting), f"{use}: every configuration spills registers"
