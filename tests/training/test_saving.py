"""Checkpoints written by a thread while training goes on: the same files, complete or not there, and every failure told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.errors import NumericalError, ResourceError
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.loop import Loop
from tests.support.loop_cases import Run, differences, tensors

RUN = Run("skip", "jumprelu", "bfloat16")


class Slow:
    """Writing that waits at its first file until it may go on, and may fail then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.genuine, self.error = checkpoint._write_tensors, error
        self.begun, self.may = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> None:
        self.begun.set()
        assert self.may.wait(20)
        if self.error is not None:
            raise self.error
        self.genuine(*args)


def slowed(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Slow:
    slow = Slow(error)
    monkeypatch.setattr(checkpoint, "_write_tensors", slow)
    return slow


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(loop: Loop, number: int) -> None:
    for _ in range(number):
        loop._step()
        loop.saver.poll()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [one for one in threading.enumerate() if one.name == "checkpoint"]


@pytest.mark.parametrize("run", [RUN, Run("clt", "batch_topk", jacobian=True)], ids=str)
def test_the_files_are_those_written_at_once(run: Run, tmp_path: Path) -> None:
    for background in (True, False):
        loop = run.loop(tmp_path / str(background), background=background, run__checkpoint_every_steps=3)
        loop.run()
    for step in (3, 6):
        folders = [checkpoint.path_of(tmp_path / str(background), step) for background in (True, False)]
        assert names(folders[0]) == names(folders[1])
        for name in names(folders[0]):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert loop.saved == folders[1]


def test_training_goes_on_and_the_checkpoint_is_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, loop = slowed(monkeypatch), RUN.loop(tmp_path, background=True)
    steps(loop, 2)
    expected = {name: tensor.clone() for name, tensor in tensors(loop.state).items()}
    loop.saver.begin(loop.state, loop._position())
    assert slow.begun.wait(20)
    steps(loop, 2)
    assert names(tmp_path) == ["step-00000002.partial"]
    assert loop.saved is None
    slow.may.set()
    loop.saver.settle()
    assert names(tmp_path) == ["step-00000002"]
    assert loop.saved == tmp_path / "step-00000002"
    made, other = checkpoint.read(loop.saved), RUN.state()
    assert made.content["data"] == {"number": 2}
    checkpoint.load_(other, made)
    assert differences(tensors(other), expected) == []
    assert differences(tensors(loop.state), expected)


def test_it_is_complete_as_soon_as_a_step_ends_after_the_writing(tmp_path: Path) -> None:
    loop = RUN.loop(tmp_path, background=True)
    steps(loop, 1)
    loop.saver.begin(loop.state, loop._position())
    writing = loop.saver._writing
    assert writing is not None
    writing.thread.join()
    assert loop.saved is None
    steps(loop, 1)
    assert loop.saved == tmp_path / "step-00000001"


def test_the_next_one_waits_and_uses_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, loop = slowed(monkeypatch), RUN.loop(tmp_path, background=True)
    steps(loop, 1)
    loop.saver.begin(loop.state, loop._position())
    held = {name: tensor.data_ptr() for name, tensor in loop.saver._copies.items()}
    assert held.keys() == {*held}
    timer = threading.Timer(0.05, slow.may.set)
    timer.start()
    steps(loop, 1)
    loop.saver.begin(loop.state, loop._position())
    assert names(tmp_path)[0] == "step-00000001"
    loop.saver.settle()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert {name: tensor.data_ptr() for name, tensor in loop.saver._copies.items()} == held


@pytest.mark.parametrize("error", [ResourceError("could not write: full"), NumericalError("not finite")], ids=repr)
def test_a_failure_is_told_after_a_later_step_and_costs_no_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = RUN.loop(tmp_path, background=True, run__checkpoint_every_steps=2)
    genuine, saves = checkpoint._write_tensors, []

    def second_fails(*args: Any) -> None:
        if args[1].parent.name == "step-00000004.partial":
            saves.append(loop.state.step)
            raise error
        genuine(*args)

    monkeypatch.setattr(checkpoint, "_write_tensors", second_fails)
    with pytest.raises(type(error)) as caught:
        loop.run()
    assert caught.value is error
    assert saves
    assert names(tmp_path) == ["step-00000002"]
    assert loop.saved == tmp_path / "step-00000002"


def test_a_run_that_fails_completes_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, loop = slowed(monkeypatch), RUN.loop(tmp_path, background=True, run__checkpoint_every_steps=2)
    genuine = loop.stream.next

    def fails() -> Any:
        if loop.state.step == 3:
            slow.may.set()
            raise ValueError("the user's")
        return genuine()

    loop.stream.next = fails  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the user's"):
        loop.run()
    assert names(tmp_path) == ["step-00000002"]


def test_control_c_waits_for_it_and_leaves_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, loop = slowed(monkeypatch), RUN.loop(tmp_path, background=True, run__checkpoint_every_steps=2)
    genuine = loop.stream.next

    def pressed() -> Any:
        if loop.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            slow.may.set()
        return genuine()

    loop.stream.next = pressed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
