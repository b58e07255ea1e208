"""What compiled kernels take: the arithmetic by hand, the record, and how often a trace compiles anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.places import RESULTS
from benchmarks.kernels.occupancy import least_time, occupancy
from benchmarks.tables.compiled import compiled, usable

RECORD = RESULTS / "kernels_compiled.json"


@pytest.mark.parametrize(
    ("capability", "warps", "registers", "shared", "columns", "programs", "limit"),
    [
        # 255 registers are given out as 8,192 a warp: eight warps, two to each scheduler
        (90, 4, 255, 0, 0, 2, "registers"),
        (90, 8, 255, 0, 0, 1, "registers"),
        (90, 4, 168, 28 * 1024, 0, 3, "registers"),  # 5,376 a warp: twelve warps
        (90, 8, 128, 0, 0, 2, "registers"),
        (90, 4, 64, 80 * 1024, 0, 2, "shared memory"),  # 81 KB of 228
        (80, 4, 64, 80 * 1024, 0, 2, "shared memory"),  # 81 KB of 164
        (80, 4, 64, 54 * 1024, 0, 2, "shared memory"),  # 55 KB: a third would be 165
        (90, 4, 64, 228 * 1024, 0, 0, "shared memory"),
        (90, 2, 16, 0, 0, 32, "programs"),
        (90, 16, 32, 0, 0, 4, "warps"),
        (100, 4, 64, 0, 256, 2, "tensor memory"),
        (100, 8, 4, 0, 816, 0, "tensor memory"),
    ],
)
def test_programs_of_a_multiprocessor(
    capability: int, warps: int, registers: int, shared: int, columns: int, programs: int, limit: str
) -> None:
    found = occupancy(capability, warps, registers, shared, columns)
    assert (found.programs, found.limit) == (programs, limit)
    assert found.warps == programs * warps
    assert found.share == found.warps / 64


def test_least_time_counts_products_as_often_as_they_are_made() -> None:
    assert least_time(990e12, "native", 0.0) == (1.0, "bfloat16 products")
    assert least_time(990e12, "split", 0.0) == (3.0, "bfloat16 products")
    assert least_time(990e12, "digits", 0.0) == (6.0, "bfloat16 products")
    assert least_time(990e12, "tf32x3", 4.8e12) == (6.0, "tf32 products")
    assert least_time(1.0, "plain", 9.6e12) == (2.0, "memory")


def test_no_kernel_of_the_record_spills() -> None:
    """Each has, at every shape and on each architecture, a configuration that fits and whose registers suffice."""
    record = json.loads(RECORD.read_text())
    assert {name for use in record["uses"] for name in use["compiled"]} == {"sm_80", "sm_90", "sm_100"}
    for use in record["uses"]:
        for name, rows in use["compiled"].items():
            for kernel in {row["kernel"] for row in rows}:
                best = [row for row in rows if row["kernel"] == kernel and usable(row)]
                assert best, f"{use['use']} at {use['shape']} on {name}: {kernel} spills or does not fit"
    assert not any("spills" in line for line in compiled(record)[2:])


TRACE = Path(__file__).with_name("count_specialisations.py")


@pytest.mark.slow("imports torch and triton in a process that does not interpret")
def test_a_trace_compiles_each_kernel_once() -> None:
    """Over rows and positions of all sizes; but for patterns, whose rows and heads begin at multiples of 16, or not."""
    pytest.importorskip("triton", reason="triton is not installed here")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    found = subprocess.run([sys.executable, str(TRACE)], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    counts = json.loads(found.stdout)
    assert counts == {
        "_project": 2,  # onto heads, and back, which adds
        "_mix": 3,  # positions are a multiple of 16, of 4 (then their square is one of 16), or of neither
        "_contract": 1,
        "_encode": 1,
        "_place": 1,
        "_decode": 1,
    }
