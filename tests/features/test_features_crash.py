"""A build killed with SIGKILL, again and again, ends with the bytes of one left in peace."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.feature_cases import Case, contents
from tests.support.feature_crash import go_on
from tests.support.process_cases import alone

# (moment, calls before it), each of a run of its own that goes on where the one before was killed
KILLS = [
    ("the move of a file into place", 0),
    ("a batch", 1),
    ("a batch", 2),
    ("the move of a file into place", 3),
    ("the move of a file into place", 4),
    ("a merge", 0),
    ("the removal of merged files", 5),
    ("a merge", 1),
    ("the move of a file into place", 8),
    ("a batch", 3),
    ("the records of a layer", 0),
    ("the records of a layer", 1),
    ("the removal of the working folder", 0),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(documents=80), marks=pytest.mark.slow("every moment of a whole run: 5 s")),
        pytest.param(Case("plt", "topk", packed=False, documents=80), marks=pytest.mark.slow("a second kind")),
    ],
    ids=str,
)
def test_killed_at_chosen_moments(case: Case, tmp_path: Path) -> None:
    whole = contents(case.build(tmp_path, "whole"))
    for moment, calls in KILLS:
        ended = alone(go_on, case, tmp_path, moment, calls, folder=tmp_path)
        assert ended.code == -signal.SIGKILL, f"{moment} {calls}: {ended}"
    ended = alone(go_on, case, tmp_path, folder=tmp_path)
    assert (ended.code, ended.error) == (0, None)
    assert contents(tmp_path / "killed") == whole


@pytest.mark.slow("a process for every file that is written")
def test_killed_at_every_file(tmp_path: Path) -> None:
    case, moment = Case(documents=80), "the move of a file into place"
    whole = contents(case.build(tmp_path, "whole"))
    for calls in range(60):
        ended = alone(go_on, case, tmp_path, moment, calls, folder=tmp_path)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
    assert ended.code == 0
    assert contents(tmp_path / "killed") == whole
