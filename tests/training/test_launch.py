"""docs/how-to/several-gpus.md and train.md: every key exists, and torchrun runs, stops and resumes as they say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from circuit_tracer.cli.train import split_overrides
from circuit_tracer.training.config.files import dump, load
from circuit_tracer.training.run import checkpoint
from tests.support.process_cases import ranks_of_command
from tests.support.train_cases import settings

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / "docs" / "how-to" / f"{name}.md").read_text(encoding="utf-8") for name in ("several-gpus", "train")
}
OWN = {"--plan", "--resume", "--print-config", "--find"}


def commands() -> list[list[str]]:
    """What follows `train` in each command of the pages that names a preset or the folder of one's run."""
    lines = [line for text in PAGES.values() for line in text.replace("\\\n", " ").split("\n")]
    found = [re.match(r"(?:circuit-tracer|torchrun .*circuit_tracer) train ([^#]*)", line) for line in lines]
    return [shlex.split(each[1]) for each in found if each and not each[1].startswith("first")]


def test_every_option_exists_and_makes_a_configuration() -> None:
    assert len(commands()) >= 8
    for name, *words in commands():
        overrides, rest = split_overrides(words, OWN)
        assert set(rest) <= OWN | {"$resume"}, rest
        load("gpt2" if name.startswith("runs/") else name, overrides)
    for flag in re.findall(r"`--([a-z]+\.[a-z_]+)(?: ([^`]+))?`", PAGES["several-gpus"]):
        overrides, _ = split_overrides([f"--{flag[0]}", flag[1] or "1"], OWN)
        load("gpt2", overrides)


def torchrun(*words: object) -> subprocess.Popen[bytes]:
    """Two processes on the CPU."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "circuit_tracer",
    ]
    return subprocess.Popen([*line, *map(str, words)], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow("torchrun imports everything three times")
def test_torchrun_is_stopped_and_resumed_on_another_grid(tmp_path: Path) -> None:
    endless = {"run__tokens": 16 * 10**6, "data__epochs": None, "dictionary__features": 16}
    (tmp_path / "small.yaml").write_text(dump(settings(tmp_path, "run", **endless)))
    job = torchrun("train", tmp_path / "small.yaml", "--run.data_parallel", 2)
    reached = steps_begin(tmp_path / "run", 0)
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=60)
    assert stopped_at(tmp_path / "run") >= reached
    words = ["train", tmp_path / "run", "--resume", "--run.data_parallel", 1]
    ranks = ranks_of_command(2, *words, folder=tmp_path / "ranks")
    further = steps_begin(tmp_path / "run", reached)
    for process in ranks:
        process.terminate()
    for process in ranks:
        process.join(60)
        assert process.exitcode is not None
    assert stopped_at(tmp_path / "run") >= further


def steps_begin(run: Path, reached: int) -> int:
    """The step of a checkpoint six steps or more behind the one that was reached, once it is there."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if (last := checkpoint.latest(run / "checkpoints")) is not None and last.step >= reached + 6:
            return last.step
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint six steps behind step {reached}")


def stopped_at(run: Path) -> int:
    """The step of the last checkpoint; none was left half written."""
    last = checkpoint.latest(run / "checkpoints")
    assert last is not None
    assert not list((run / "checkpoints").glob("*.partial"))
    return last.step
