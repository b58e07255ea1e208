"""A run that stops, by itself or killed, goes on to bitwise the same weights, moments and reports."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuit_tracer.training.run import checkpoint
from tests.support.loop_cases import RUNS, Run, differences, reports, tensors


@pytest.fixture(autouse=True)
def _folders_go(tmp_path: Path) -> Iterator[None]:
    """Hundreds of small checkpoints need not stay for three sessions."""
    yield
    shutil.rmtree(tmp_path)


@pytest.mark.few
@pytest.mark.parametrize("run", [*RUNS, Run("sae", "switch", steps=4)], ids=str)
def test_a_new_process_after_every_step_changes_nothing(run: Run, tmp_path: Path) -> None:
    whole = run.loop(tmp_path / "whole")
    whole.run()
    assert len(reports(whole)) == run.steps
    assert any(any(report["dead_S"]) for report in reports(whole))
    for step in range(run.steps):
        loop = run.loop(tmp_path / "parts", n_batches=step + 1)
        assert loop.state.step == step
        loop._step()
        loop.save()
        assert reports(loop) == [reports(whole)[step]]
    assert differences(tensors(loop.state), tensors(whole.state)) == []
    assert loop.state.running_cut == whole.state.running_cut


# large enough for the encoder's coarse scan
WIDE = Run("clt", "batch_topk", steps=4, features=256, width=64, batch=256)


@pytest.mark.parametrize("run", [Run("clt", "batch_topk"), Run("skip", "jumprelu", "bfloat16"), WIDE], ids=str)
def test_a_run_goes_on_from_any_step_to_the_same_end(run: Run, tmp_path: Path) -> None:
    whole = run.loop(tmp_path / "whole")
    whole.run()
    for stop in range(1, run.steps):
        first = run.loop(tmp_path / str(stop))
        for _ in range(stop):
            first._step()
        first.save()
        second = run.loop(tmp_path / str(stop))
        second.run()
        assert reports(first) + reports(second) == reports(whole)
        assert differences(tensors(second.state), tensors(whole.state)) == []


def test_what_features_did_before_the_stop_is_known_after_it(tmp_path: Path) -> None:
    """The checkpoint has more than weights: without any of these, the run would go on differently."""
    run = Run("clt", "batch_topk")
    loop = run.loop(tmp_path)
    for _ in range(4):
        loop._step()
    loop.save()
    resumed = run.loop(tmp_path)
    assert any(int(tokens.max()) > 0 for tokens in resumed.state.silence.tokens)
    assert all(float(moment.abs().max()) > 0 for moment in resumed.state.adam.second.values())
    assert resumed.state.running_cut == loop.state.running_cut is not None
    assert resumed.stream.state() == {"number": 4}


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    run = Run()
    first = run.loop(tmp_path)
    first.run()
    first.save()
    again = run.loop(tmp_path)
    again.run()
    assert reports(again) == []
    assert differences(tensors(again.state), tensors(first.state)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    run = Run()
    whole = run.loop(tmp_path / "whole")
    whole.run()
    loop = run.loop(tmp_path / "stopped")
    handler = signal.getsignal(number)
    genuine = loop.stream.next

    def sent_in_step_3() -> object:
        if loop.state.step == 3:
            signal.raise_signal(number)
        return genuine()

    loop.stream.next = sent_in_step_3  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert signal.getsignal(number) is handler
    last = checkpoint.latest(tmp_path / "stopped")
    assert last is not None
    assert last.step == 4
    second = run.loop(tmp_path / "stopped")
    second.run()
    assert reports(loop) + reports(second) == reports(whole)
    assert differences(tensors(second.state), tensors(whole.state)) == []


def test_a_second_control_c_interrupts_at_once(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path)

    def pressed_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    loop.stream.next = pressed_twice  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert checkpoint.latest(tmp_path) is None


def test_a_loop_runs_outside_the_main_thread(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path)
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join()
    assert loop.state.step == loop.config.steps
