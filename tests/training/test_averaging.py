"""Averages of weights: their definition, that they survive a resumption, and that they are what is written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuit_tracer.training.export.export import folded
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.step.dictionary import row_norms
from tests.support.loop_cases import MemoryStream, Run, differences, tensors

SHARE, STEPS = 0.4, 10
AVERAGED = (("averaging", SHARE),)


def recorded(made: Loop) -> list[dict[str, Tensor]]:
    found = []
    for _ in range(STEPS):
        made._step()
        found.append({name: tensor.clone().float() for name, tensor in made.state.dictionary.tensors().items()})
    return found


RUNS = [
    Run("skip", "jumprelu", steps=STEPS, optimizer=AVERAGED),
    Run("clt", "batch_topk", "bfloat16", steps=STEPS, optimizer=AVERAGED),
]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_average_is_a_mean_at_first_and_then_forgets(run: Run, tmp_path: Path) -> None:
    made = run.loop(tmp_path)
    weights = recorded(made)
    window = SHARE * STEPS
    average = made.state.result
    for name, tensor in average.tensors().items():
        expected = torch.stack([one[name] for one in weights[: int(window)]]).mean(0)
        for one in weights[int(window) :]:
            expected = (1 - 1 / window) * expected + one[name] / window
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)
    for norm_f, rows in zip(average.norms, average.W_dec, strict=True):
        assert torch.equal(norm_f, row_norms(rows))
    assert differences(average.tensors(), made.state.dictionary.tensors())


def test_a_step_that_was_skipped_is_in_no_average(tmp_path: Path) -> None:
    """Not even the first one, before which the average holds what was drawn."""
    made = RUNS[1].loop(tmp_path)
    batches = [MemoryStream(made.stream.run).batch(number) for number in range(3)]  # type: ignore[attr-defined]
    batches[0] = replace(batches[0], y_BSD=batches[0].y_BSD * math.nan)
    made.stream.next = iter(batches).__next__  # type: ignore[method-assign]
    weights = []
    for _ in batches:
        made._step()
        weights.append({name: tensor.clone().float() for name, tensor in made.state.dictionary.tensors().items()})
    assert made.state.spikes.skipped == 1
    for name, tensor in made.state.result.tensors().items():
        torch.testing.assert_close(tensor, (weights[1][name] + weights[2][name]) / 2, msg=name)


def test_the_average_resumes_and_is_written(tmp_path: Path) -> None:
    run = Run("skip", "jumprelu", steps=STEPS, optimizer=AVERAGED)
    whole, first = run.loop(tmp_path / "whole"), run.loop(tmp_path / "parts")
    whole.run()
    for _ in range(4):
        first._step()
    first.save()
    second = run.loop(tmp_path / "parts")
    assert second.state.step == 4
    second.run()
    assert differences(tensors(whole.state), tensors(second.state)) == []
    saved, space = checkpoint.read(second.save()), whole.state.normalisation
    average = whole.state.result
    assert average.log_threshold is not None
    assert average.W_skip is not None
    config = run.config(run__export_dtype="float32")
    layer = folded(saved, config, None, 1)
    torch.testing.assert_close(layer.encoder_FD, average.W_enc[1] * space.scale_x_S[1])
    torch.testing.assert_close(layer.decoder_FTD[:, 0], average.W_dec[1] / space.scale_y_S[1])
    torch.testing.assert_close(layer.threshold_F, average.log_threshold[1].exp())
    torch.testing.assert_close(
        layer.skip_DD, (average.W_skip[1] * (space.scale_x_S[1] / space.scale_y_S[1])), check_dtype=False
    )
