"""A run killed with SIGKILL, again and again and at any moment, ends with bitwise the checkpoint of one left in peace."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from circuit_tracer.training.run import checkpoint
from tests.support.crash_cases import go_on
from tests.support.loop_cases import Run, differences, tensors
from tests.support.process_cases import alone

# (moment, calls before it): three sources and one set of shared tensors a save, ten updates a step
KILLS = [
    ("an update", 0),
    ("an update", 17),
    ("a file of a checkpoint", 0),
    ("a file of a checkpoint", 2),
    ("a file of a checkpoint", 3),
    ("the move into place", 0),
    ("the removal of old ones", 0),
    ("the removal of files", 0),
    ("a report", 2),
    ("an update", 25),
    ("a file of a checkpoint", 6),
    ("the move into place", 1),
    ("the removal of files", 3),
    ("the removal of old ones", 1),
    ("a report", 1),
]


def same_end(run: Run, folder: Path) -> None:
    """The last checkpoint in `folder` is the end of the run, bitwise; those before it are whole too."""
    whole = run.loop(folder / "whole")
    whole.run()
    last = checkpoint.latest(folder / "killed")
    assert last is not None
    assert last.step == run.steps
    assert last.content["done"] is True
    found = run.loop(folder / "killed").state
    assert differences(tensors(found), tensors(whole.state)) == []
    assert found.running_cut == whole.state.running_cut
    complete = [path for path in (folder / "killed").iterdir() if path.suffix == ""]
    assert len(complete) <= checkpoint.KEPT + 1  # killed before the removal of the oldest
    for path in complete:
        checkpoint.load_(run.state(), checkpoint.read(path))


@pytest.mark.slow("kills processes, 3 s")
@pytest.mark.parametrize(
    ("run", "background"),
    [
        pytest.param(Run("clt", "batch_topk", steps=30), True, id="clt-batch_topk-float32-background"),
        pytest.param(
            Run("skip", "jumprelu", "bfloat16", steps=30),
            False,
            id="skip-jumprelu-bfloat16",
            marks=pytest.mark.slow("sixteen processes more"),
        ),
    ],
)
def test_killed_at_chosen_moments(run: Run, background: bool, tmp_path: Path) -> None:
    reached = 0
    for moment, calls in KILLS:
        ended = alone(go_on, run, tmp_path / "killed", moment, calls, 0.0, background, folder=tmp_path)
        assert ended.code == -signal.SIGKILL, f"{moment} {calls}: {ended}"
        last = checkpoint.latest(tmp_path / "killed")
        begun, reached = reached, last.step if last else 0
        assert begun <= reached
    assert 0 < reached < run.steps
    ended = alone(go_on, run, tmp_path / "killed", folder=tmp_path)
    assert (ended.code, ended.result, ended.error) == (0, reached, None)
    same_end(run, tmp_path)


@pytest.mark.slow("a run of many steps, killed seven times")
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(seed: int, tmp_path: Path) -> None:
    # however fast the machine, the pauses alone last longer than all the time before the last kill
    kills, longest, pause = 6, 0.75, 0.02
    run, draw = Run("clt", "batch_topk", features=256, width=64, batch=256, steps=240), random.Random(seed)
    assert kills * longest <= run.steps * pause
    for _ in range(kills):
        delay = draw.uniform(0.05, longest)
        ended = alone(go_on, run, tmp_path / "killed", None, 0, pause, seed > 0, folder=tmp_path, kill_after=delay)
        assert ended.code == -signal.SIGKILL, ended
    ended = alone(go_on, run, tmp_path / "killed", folder=tmp_path)
    assert (ended.code, ended.error) == (0, None)
    same_end(run, tmp_path)
