"""Threads of a process that imports the package wait without spinning, unless its user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SCRIPT = "import os, sys; {first}import circuit_tracer; print(*(os.environ.get(name) for name in sys.argv[1:]))"


@pytest.mark.parametrize(
    ("first", "set_by_user", "expected"),
    [
        ("", {}, "passive None None"),
        ("", {"OMP_WAIT_POLICY": "active"}, "active None None"),
        ("", {"GOMP_SPINCOUNT": "1000"}, "None 1000 None"),
        ("sys.modules['torch'] = sys; ", {}, "None None None"),  # torch has read it already
    ],
)
def test_threads_wait_passively_unless_the_user_says_how(
    first: str, set_by_user: dict[str, str], expected: str
) -> None:
    given = {name: value for name, value in os.environ.items() if name not in NAMES}
    script = SCRIPT.format(first=first)
    done = subprocess.run([sys.executable, "-c", script, *NAMES], env=given | set_by_user, capture_output=True, text=True)
    assert done.stdout.split() == expected.split(), done.stderr
