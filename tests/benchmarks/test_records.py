"""What stands in every record: the machine, and what others used of it meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.machine import Used, describe, write_results

BURN = "import time\nwhile time.process_time() < .2: pass"


def test_others_are_all_but_this_process_and_its_children() -> None:
    before, after = Used(0.0, 100.0, 3.0), Used(10.0, 115.0, 8.0)
    assert after.others_since(before) == pytest.approx(1.0)  # 15 s of everybody, 5 of them ours


def test_work_of_this_process_and_of_its_children_is_its_own() -> None:
    before = Used.now()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert Used.now().ours - before.ours > 0.1  # the system counts in ticks


def test_record_says_how_busy_others_were(tmp_path: Path) -> None:
    write_results(tmp_path / "record.json", describe(found=1))
    machine = json.loads((tmp_path / "record.json").read_text())["machine"]
    assert 0 <= machine["others_busy_cores"] <= machine["cores"]
    assert machine["seconds"] > 0
