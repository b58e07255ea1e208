"""The loop: schedules, reports, checkpoints and evaluations at their steps, and what stops it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step import schedules
from tests.support.loop_cases import (
    BATCH,
    FEATURES,
    LAYERS,
    STEPS,
    MemoryStream,
    Recorder,
    Run,
    differences,
    numbers,
    reports,
    tensors,
)


def test_every_step_is_reported_with_its_schedule(tmp_path: Path) -> None:
    run = Run("clt", "batch_topk", steps=10)
    loop = run.loop(tmp_path)
    loop.run()
    found = reports(loop)
    assert [report["step"] for report in found] == list(range(1, 11))
    assert all(report["steps"] == 10 for report in found)
    assert [report["tokens"] for report in found] == [BATCH * step for step in range(1, 11)]
    rates = [schedules.learning_rate(loop.config, n) for n in range(10)]
    assert [report["learning_rate"] for report in found] == rates
    assert [report["active"] for report in found] == [schedules.active(loop.config, n) for n in range(10)]
    for report in found:
        # k a layer on average: the rule is exact
        assert sum(report["l0_S"]) * BATCH == pytest.approx(round(report["active"] * LAYERS * BATCH))
        assert report["loss"] == pytest.approx(sum(report["terms"].values()))
        assert report["terms"]["reconstruction"] == pytest.approx(sum(report["nmse_S"]) / LAYERS)
        assert report["cut"] > 0
    assert found[-1]["nmse_S"] < found[0]["nmse_S"]


def test_a_report_is_the_mean_over_the_steps_since_the_last(tmp_path: Path) -> None:
    run = Run("clt", "jumprelu", steps=10)
    each = run.loop(tmp_path)
    each.run()
    every_fourth = run.loop(tmp_path, run__log_every=4)
    every_fourth.run()
    single, found = reports(each), reports(every_fourth)
    assert [report["step"] for report in found] == [4, 8, 10]
    for report, steps in zip(found, (single[:4], single[4:8], single[8:]), strict=True):
        assert report["loss"] == pytest.approx(sum(one["loss"] for one in steps) / len(steps))
        for layer in range(LAYERS):
            for name in ("nmse_S", "l0_S"):
                mean = sum(one[name][layer] for one in steps) / len(steps)
                assert report[name][layer] == pytest.approx(mean)
        assert report["dead_S"] == steps[-1]["dead_S"]
        assert report["active"] == schedules.active(every_fourth.config, report["step"] - 1)
    assert differences(tensors(each.state), tensors(every_fourth.state)) == []


def test_speed_and_time_left_are_positive(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path)
    loop.run()
    assert isinstance(loop.listener, Recorder)
    assert all(report.tokens_per_second > 0 for report in loop.listener.reports)
    assert loop.listener.reports[0].seconds_left > 0
    assert loop.listener.reports[-1].seconds_left == 0
    assert "seconds_left" not in numbers(loop.listener.reports[0])


def test_silent_features_are_dead_and_counted(tmp_path: Path) -> None:
    run = Run("clt", "batch_topk")
    loop = run.loop(tmp_path)
    loop.run()
    found = reports(loop)
    out_of_reach = len(range(0, FEATURES, 5))
    assert all(report["dead_S"] == [0.0] * LAYERS for report in found[:1])
    assert all(share >= out_of_reach / FEATURES / 2 for share in found[2]["dead_S"])
    assert "aux" in found[3]["terms"]
    assert "aux" not in found[1]["terms"]


def test_evaluations_come_right_after_a_checkpoint(tmp_path: Path) -> None:
    loop = Run(steps=9).loop(tmp_path, evaluation__every_steps=3, run__checkpoint_every_steps=4)
    seen: list[tuple[int, int]] = []

    def evaluate() -> None:
        last = checkpoint.latest(tmp_path)
        assert last is not None
        assert loop.saved == last.folder
        seen.append((loop.state.step, last.step))

    saves: list[int] = []
    genuine = loop.saver.save

    def save(state: TrainingState, facts: dict[str, Any]) -> Path:
        saves.append(state.step)
        return genuine(state, facts)

    loop.saver.save = save  # type: ignore[method-assign]
    loop.run(evaluate)
    assert seen == [(3, 3), (6, 6)]  # at the end it is the trainer's turn
    assert saves == [3, 4, 6, 8]


def test_a_step_already_saved_only_gets_the_further_facts(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path, run__checkpoint_every_steps=STEPS)
    loop.run()
    assert loop.saved is not None
    before = (loop.saved / "shared.safetensors").stat().st_mtime_ns
    path = loop.save(levels=[1.0])
    assert path == loop.saved
    assert (path / "shared.safetensors").stat().st_mtime_ns == before
    content = checkpoint.read(path).content
    assert content["levels"] == [1.0]
    assert content["data"] == {"number": STEPS}
    assert content["fact"] == str(Run())


def test_data_that_end_early_are_an_input_error(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path, n_batches=3)
    with pytest.raises(InputError, match=r"the data ended after 3 of 6 steps \(60 of 120 tokens\)"):
        loop.run()
    assert loop.state.step == 3
    last = checkpoint.latest(tmp_path)
    assert last is not None
    assert last.step == 3


class Breaks(MemoryStream):
    """One number of one batch is not a number."""

    def __init__(self, run: Run, number: int, field: str, value: float) -> None:
        super().__init__(run)
        self.place = (number, field, value)

    def batch(self, number: int) -> ActivationBatch:
        """As it should be, but for one."""
        made = super().batch(number)
        broken, field, value = self.place
        if number != broken:
            return made
        changed = getattr(made, field).clone()
        changed[2, 1, 3] = value
        return replace(made, **{field: changed})


def broken(run: Run, folder: Path, field: str, value: float) -> Loop:
    loop = run.loop(folder, run__checkpoint_every_steps=2, optimizer__skip_above=0.0)
    loop.stream = Breaks(run, 3, field, value)
    return loop


@pytest.mark.few
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("y_BSD", float("nan"), "step 3: the reconstruction error of source layer 1 is nan. Nothing was changed"),
        ("y_BSD", float("inf"), "step 3: the reconstruction error of source layer 1 is inf. Nothing was changed"),
        ("x_BSD", float("inf"), "step 3: the reconstruction error of source layer 1 is (nan|inf)"),
        ("derivative_BSD", float("nan"), "step 3: the jacobian loss is nan. Nothing was changed"),
    ],
    ids=lambda value: str(value)[:14],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    field: str, value: float, message: str, tmp_path: Path
) -> None:
    run = Run("skip", "batch_topk", jacobian=True)
    loop = broken(run, tmp_path / "broken", field, value)
    with pytest.raises(NumericalError, match=message) as caught:
        loop.run()
    assert "The last good checkpoint is" in str(caught.value)
    assert "step-00000002" in str(caught.value)
    good = run.loop(tmp_path / "good")
    for _ in range(3):
        good._step()
    assert differences(tensors(loop.state), tensors(good.state)) == []
    last = checkpoint.latest(tmp_path / "broken")
    assert last is not None
    assert last.step == 2
    resumed = run.loop(tmp_path / "broken")
    resumed.run()
    assert resumed.state.step == STEPS


def test_without_a_checkpoint_the_error_says_so(tmp_path: Path) -> None:
    loop = Run().loop(tmp_path, optimizer__skip_above=0.0)
    loop.stream = Breaks(loop.stream.run, 0, "y_BSD", float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(NumericalError, match=r"step 0: .* There is no checkpoint yet"):
        loop.run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_batches_are_normalised_in_float32_or_wider(dtype: torch.dtype) -> None:
    run = Run("clt", "batch_topk", jacobian=True)
    made, space = run.stream().batch(0), run.space()
    typed = ActivationBatch(*(tensor.to(dtype) for tensor in vars(made).values()))
    batch = normalised(typed, space)
    assert batch.direction_SBD is not None
    assert batch.derivative_SBD is not None
    wide = torch.promote_types(dtype, torch.float32)
    for tensor in (*batch.x_SBD, batch.y_BSD, *batch.direction_SBD, *batch.derivative_SBD):
        assert tensor.dtype is wide
    for source in range(LAYERS):
        expected = (typed.x_BSD[:, source].to(wide) - space.mean_x_SD[source]) * space.scale_x_S[source]
        torch.testing.assert_close(batch.x_SBD[source], expected)
        scale = space.scale_y_S[source] / space.scale_x_S[source]
        torch.testing.assert_close(batch.derivative_SBD[source], typed.derivative_BSD[:, source].to(wide) * scale)  # type: ignore[index]
    # E|x'|^2 = D over the batches that were measured
    many = torch.stack([normalised(run.stream().batch(n), space).y_BSD for n in range(3)])
    torch.testing.assert_close(many.square().sum(3).mean((0, 1)), torch.full((LAYERS,), float(run.width)))


def test_jacobian_scales_are_measured_on_the_first_batch(tmp_path: Path) -> None:
    run = Run("clt", "batch_topk", jacobian=True)
    loop = run.loop(tmp_path)
    loop._step()
    scale_S = loop.state.derivative_scale_S
    assert scale_S is not None
    first = normalised(run.stream().batch(0), run.space()).derivative_SBD
    assert first is not None
    torch.testing.assert_close(scale_S, torch.stack([u_BD.square().sum(1).mean() for u_BD in first]))
    before = scale_S.clone()
    loop._step()
    assert torch.equal(scale_S, before)
