"""The sparse trainer makes the same steps as plain dense training: same batches, same initial weights, many steps of Adam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.events import NullListener, StepReport
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.adam import Adam
from circuit_tracer.training.step.dead_features import Silence
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.normalisation import Normalisation
from tests.support.dense_trainer import DenseTrainer, DenseTranscoder

LAYERS, WIDTH, FEATURES, BATCH, STEPS = 3, 10, 24, 32, 80
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class Drawn:
    """Batches drawn by a seed: outputs are a fixed nonlinear function of inputs with offsets and scales of their own."""

    def __init__(self, seed: int) -> None:
        self.chance = torch.Generator().manual_seed(seed)
        self.mix_SDD = torch.randn(LAYERS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))

    def next(self) -> ActivationBatch:
        x_BSD = torch.randn(BATCH, LAYERS, WIDTH, generator=self.chance) * torch.tensor([0.1, 3.0, 20.0])[:, None] + 1.0
        return ActivationBatch(x_BSD, torch.relu(torch.einsum("bsd,sde->bse", x_BSD, self.mix_SDD)) + 2.0)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Losses(NullListener):
    def __init__(self) -> None:
        self.found: list[float] = []

    def progress(self, report: StepReport) -> None:
        self.found.append(report.loss)


def configuration(folder: Path, **sparsity: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "model": {"name": "none"},
            "data": {"kind": "tokens", "path": "none"},
            "dictionary": {"kind": "clt", "features": FEATURES},
            "sparsity": {
                "active": 2.0,
                "active_at_start": 6.0,
                "anneal": 0.5,
                "pre_activation_weight": 0.0,
                **sparsity,
            },
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 10, "decay": 0.3},
            "run": {"out": folder, "tokens": STEPS * BATCH, "batch": BATCH, "log_every": 1, "seed": 5},
        }
    )


def space(dtype: torch.dtype) -> Normalisation:
    batch = Drawn(7).next()
    moments = [one for side in (batch.x_BSD, batch.y_BSD) for one in (side.mean(0), side.var(0).sum(1))]
    found = Normalisation.from_moments(*moments)
    return Normalisation(**{name: tensor.to(dtype) for name, tensor in found.tensors().items()})


def initial(dtype: torch.dtype) -> Dictionary:
    return Dictionary.initial("clt", LAYERS, FEATURES, WIDTH, dtype=dtype, seed=5)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_the_sparse_loop_is_dense_training(dtype: torch.dtype, tmp_path: Path) -> None:
    config, listener, dictionary = configuration(tmp_path), Losses(), initial(dtype)
    state = TrainingState(dictionary, Adam(dictionary, config.optimizer, 0), Silence.initial(dictionary), space(dtype))
    Loop(config, state, Drawn(1), FeatureRanks(), listener, tmp_path, {}).run()

    dense, data = DenseTrainer(DenseTranscoder(initial(dtype))), Drawn(1)

    def next_batch() -> tuple[Tensor, Tensor]:
        batch, measured = data.next(), space(dtype)
        x_BSD = (batch.x_BSD - measured.mean_x_SD) * measured.scale_x_S[:, None]
        return x_BSD.transpose(0, 1), measured.y(batch.y_BSD).transpose(0, 1)

    dense.run(
        STEPS,
        next_batch,
        lambda step: schedules.active(config, step),
        lambda step: schedules.learning_rate(config, step),
    )
    assert dense.losses[-1] < 0.8 * dense.losses[0]
    assert listener.found == pytest.approx(dense.losses, rel=TOLERANCE[dtype])
    expected = initial(dtype)
    dense.transcoder.copy_to(expected)
    for name, weight in expected.tensors().items():
        torch.testing.assert_close(
            dictionary.tensors()[name], weight, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], msg=name
        )


def test_a_planted_feature_reads_its_context_and_writes_what_was_missing() -> None:
    dense = DenseTrainer(DenseTranscoder(initial(torch.float64)))
    batch = Drawn(1).next()
    pool = batch.x_BSD.double().transpose(0, 1), batch.y_BSD.double().transpose(0, 1)
    dense.run(1, lambda: pool, lambda step: 2.0, lambda step: 1e-3)
    dense.fired_LF[:] = True
    dense.fired_LF[1, 3] = False
    dense.plant(pool, 2.0, torch.Generator().manual_seed(0))
    row_D = dense.transcoder.W_enc_LFD[1, 3]
    assert float(row_D.norm()) == pytest.approx(1.0)
    x_BD = pool[0][1]
    pre_B = x_BD @ row_D + dense.transcoder.b_enc_LF[1, 3]
    own = int((x_BD / x_BD.norm(dim=1, keepdim=True) @ row_D).argmax())
    assert float(pre_B[own]) == pytest.approx(0.5 * float(x_BD[own].norm()))
    assert not dense.fired_LF.any()
