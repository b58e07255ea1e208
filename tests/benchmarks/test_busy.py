"""The busy loops of a benchmark are there while it measures, and gone however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from benchmarks.tracing.busy import busy, summary


def ended(pid: int, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_loops_end_with_what_they_were_for() -> None:
    with suppress(KeyboardInterrupt), busy(2) as loops:
        assert all(psutil.pid_exists(pid) for pid in loops)
        raise KeyboardInterrupt
    assert all(ended(pid, 0) for pid in loops)


@pytest.mark.slow("takes 1.6 s")
def test_loops_end_when_their_process_is_killed() -> None:
    script = (
        "import time\nfrom benchmarks.tracing.busy import busy\n"
        "with busy(1) as loops:\n    print(*loops, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        loops = [int(pid) for pid in holder.stdout.readline().split()]
        os.kill(holder.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    assert len(loops) == 1
    assert all(ended(pid) for pid in loops)


def test_ratios_are_to_the_quiet_times() -> None:
    quiet = summary(0, [{"seconds": [2.0, 1.0, 1.2], "peak_gb": 3.0}], None)
    line = summary(
        2, [{"seconds": [5.0, 2.0, 2.4], "peak_gb": 3.1}, {"seconds": [3.0, 2.2, 2.2], "peak_gb": 3.0}], quiet
    )
    assert (line["first"], line["first_ratio"], line["peak_gb"]) == (4.0, 2.0, 3.1)
    assert line["warm_ratio"] == pytest.approx(2.0)
