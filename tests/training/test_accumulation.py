"""A batch in parts is the whole batch where the rule decides token by token; elsewhere the parts' mean gradient is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.training.run.loop import Loop, joined, normalised
from circuit_tracer.training.step.accumulation import Accumulated
from circuit_tracer.training.step.step import Sink, StepOutcome, train_step
from tests.support.loop_cases import Run, reports, tensors

PARTS = 4


class Gradients:
    """A sink that keeps them."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def gradient(self, name: str, grad: Tensor) -> None:
        """Keep it."""
        self.found[name] = grad.clone()

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Keep the block."""
        name = f"W_dec.{source}"
        self.found[name] = torch.cat([self.found.get(name, grad_nC[:0]), grad_nC])


def trained(run: Run, folder: Path, parts: int) -> Loop:
    loop = run.loop(folder, run__accumulate=parts)
    loop.run()
    return loop


@pytest.mark.few
@pytest.mark.parametrize(
    "run",
    [Run(k, a, "float64") for k, a in (("clt", "topk"), ("plt", "jumprelu"), ("skip", "relu"), ("plt", "gated"))],
    ids=str,
)
def test_training_in_parts_is_training_on_whole_batches(run: Run, tmp_path: Path) -> None:
    whole, parts = (trained(run, tmp_path / str(n), n) for n in (1, PARTS))
    found = tensors(parts.state)
    for name, tensor in tensors(whole.state).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    for one, other in zip(reports(whole), reports(parts), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-9)
        assert other["nmse_S"] == pytest.approx(one["nmse_S"], rel=1e-9)
        assert (other["l0_S"], other["dead_S"]) == (one["l0_S"], one["dead_S"])


@pytest.mark.parametrize(
    "run", [Run("clt", "batch_topk", "float64"), Run("skip", "topk", "bfloat16", jacobian=True)], ids=str
)
def test_the_sink_behind_sees_the_mean_gradient_once(run: Run, tmp_path: Path) -> None:
    loop, activations = run.loop(tmp_path), run.stream().batch(0)
    loop._begin(activations)
    kept, direct = Gradients(), list[Gradients]()
    accumulated, outcomes = Accumulated(kept, loop.state.dictionary, PARTS), list[StepOutcome]()

    def step(part: Any, sink: Sink) -> StepOutcome:
        batch = normalised(part, loop.state.normalisation)
        settings, moment = loop.config.sparsity, loop.moment(0)
        return train_step(loop.state.dictionary, batch, settings, moment, sink, loop.ranks, loop.scratch)

    for number, part in enumerate(activations.split(PARTS)):
        direct.append(Gradients())
        step(part, direct[-1])
        accumulated.begin(number)
        assert not kept.found
        outcomes.append(step(part, accumulated))
    assert kept.found.keys() == loop.state.dictionary.tensors().keys()
    for name, grad in kept.found.items():
        mean = torch.stack([one.found[name] for one in direct]).mean(0)
        torch.testing.assert_close(grad, mean.view(grad.shape), rtol=1e-6, atol=1e-7, msg=name)
    together = joined(outcomes)
    assert together.loss == pytest.approx(sum(one.loss for one in outcomes) / PARTS)
    for source, fired_f in enumerate(together.fired):
        assert torch.equal(fired_f, torch.stack([one.fired[source] for one in outcomes]).sum(0))
