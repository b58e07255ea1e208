"""Steps with a bad loss are skipped: nothing changes, they are counted and said, and too many in a row end the run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from circuit_tracer.errors import NumericalError
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.step.spikes import FEWEST, SKIPPED_IN_A_ROW, SpikeWatch, StepRefused
from tests.support.loop_cases import MemoryStream, Recorder, Run, differences, reports, tensors

RUN = Run("clt", "batch_topk", steps=FEWEST + 6)


class Spoiled(MemoryStream):
    """Batches of RUN; the outputs of some are multiplied."""

    def __init__(self, times: dict[int, float]) -> None:
        super().__init__(RUN)
        self.times = times

    def batch(self, number: int) -> ActivationBatch:
        """As they are, or spoiled."""
        made = super().batch(number)
        return replace(made, y_BSD=made.y_BSD * self.times.get(number, 1.0))


class Listening(Recorder):
    """Keeps messages too."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        """Keep it."""
        self.heard.append(text)


def loop(folder: Path, times: dict[int, float]) -> Loop:
    made = RUN.loop(folder)
    made.stream, made.listener = Spoiled(times), Listening()
    return made


@pytest.mark.parametrize(
    ("number", "times"), [(FEWEST + 2, 1000.0), (3, math.nan), (3, math.inf)], ids=["above", "nan", "infinite"]
)
def test_a_bad_step_changes_nothing_and_is_counted(number: int, times: float, tmp_path: Path) -> None:
    bad = loop(tmp_path / "bad", {number: times})
    for _ in range(number):
        bad._step()
    before = {name: tensor.clone() for name, tensor in tensors(bad.state).items()}
    cut = bad.state.running_cut
    bad._step()
    assert differences(before, tensors(bad.state)) == []
    assert (bad.state.step, bad.state.running_cut) == (number + 1, cut)
    bad.run()
    found = reports(bad)
    assert [report["step"] for report in found] == [step + 1 for step in range(RUN.steps) if step != number]
    assert [report["skipped"] for report in found] == [int(report["step"] > number) for report in found]
    assert isinstance(bad.listener, Listening)
    (said,) = bad.listener.heard
    assert said.startswith(f"step {number} is skipped: the ")
    assert "Nothing was changed" in said


def test_an_early_step_far_above_the_others_is_taken(tmp_path: Path) -> None:
    early = loop(tmp_path, {3: 1000.0})
    early.run()
    assert early.state.spikes.skipped == 0


def test_a_resumed_run_skips_the_same_steps(tmp_path: Path) -> None:
    times = {FEWEST + 1: 1000.0, FEWEST + 3: 1000.0}
    whole, first = loop(tmp_path / "whole", times), loop(tmp_path / "parts", times)
    whole.run()
    for _ in range(FEWEST + 2):
        first._step()
    first.save()
    second = loop(tmp_path / "parts", times)
    second.stream.restore({"number": second.state.step})
    last = checkpoint.latest(tmp_path / "parts")
    assert last is not None
    assert (second.state.step, second.state.spikes.skipped) == (FEWEST + 2, 1)
    second.run()
    assert differences(tensors(whole.state), tensors(second.state)) == []
    assert second.state.spikes == whole.state.spikes
    assert second.state.spikes.skipped == 2


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    bad = loop(tmp_path, dict.fromkeys(range(4, 4 + SKIPPED_IN_A_ROW), math.nan))
    with pytest.raises(
        NumericalError, match=rf"step {3 + SKIPPED_IN_A_ROW}: .*the last of {SKIPPED_IN_A_ROW} steps in a row"
    ):
        bad.run()


def test_weights_that_are_not_finite_end_the_run_at_once(tmp_path: Path) -> None:
    bad = loop(tmp_path, {})
    bad._step()
    bad.state.dictionary.W_dec[1][3] = math.nan
    with pytest.raises(NumericalError, match=r"step 1: .* Weights are not finite"):
        bad._step()


def test_what_is_usual_is_the_median() -> None:
    watch = SpikeWatch()
    assert watch.highest(3.0) == math.inf
    for number in range(FEWEST):
        watch.taken(1.0 + number)
    assert watch.highest(3.0) == 3.0 * (1 + (FEWEST - 1) / 2)
    assert watch.highest(0.0) == math.inf
    watch.refused(StepRefused("far above"))
    assert SpikeWatch.restored(watch.state()) == watch
    assert (watch.skipped, watch.in_a_row) == (1, 1)
    watch.taken(1.0)
    assert (watch.skipped, watch.in_a_row) == (1, 0)
