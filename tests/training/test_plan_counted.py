"""What a plan says of memory, arithmetic and bytes, against what is counted on the tensors of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from circuit_tracer.training.config.files import load
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import ActivationBatch
from circuit_tracer.training.export.calibration import level_scores, n_batches
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.cost import (
    PRODUCTS,
    ModelSizes,
    TrainingCost,
    flop,
    moved_bytes,
    operations,
)
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.memory import device_memory
from circuit_tracer.training.run.requirements import make_plan
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step.normalisation import Normalisation
from tests.support.config_cases import small
from tests.support.counted import counted
from tests.support.data_cases import config as data_config
from tests.support.data_cases import parts as data_parts
from tests.support.data_cases import stream, texts, write_jsonl
from tests.support.live_bytes import LiveBytes
from tests.support.plan_cases import H200, PUBLISHED, TINY


class Noise:
    """Batches of unit Gaussians."""

    def __init__(self, kind: str, batch: int, layers: int, width: int) -> None:
        self.shape, self.same = (batch, layers, width), kind == "sae"

    def next(self) -> ActivationBatch:
        """One."""
        x_BSD = torch.randn(self.shape)
        return ActivationBatch(x_BSD, x_BSD if self.same else torch.randn(self.shape))

    def state(self) -> dict[str, Any]:
        """None."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


def looped(config: TrainingConfig, layers: int, width: int) -> Loop:
    zeros, ones, device = torch.zeros(layers, width), torch.ones(layers), torch.device("cpu")
    state = TrainingState.initial(config, Normalisation(zeros, ones, zeros, ones), None, device, FeatureRanks())
    stream = Noise(config.dictionary.kind, config.run.batch, layers, width)
    return Loop(config, state, stream, FeatureRanks(), NullListener(), Path("unused"), {})


# those whose peak is a step, and one whose peak is the calibration at its end
COUNTED: dict[str, dict[str, Any]] = {
    "clt-relu": {"sparsity__activation": "relu", "sparsity__penalty": 0.1},
    "skip-jumprelu": {
        "dictionary__kind": "skip", "sparsity__activation": "jumprelu", "sparsity__penalty": 0.1,
    },
    "clt-gated-matryoshka": {"sparsity__activation": "gated", "sparsity__prefixes": [40, 200]},
    "clt-batch_topk-bfloat16": {
        "optimizer__moments": "bfloat16", "dictionary__dtype": "bfloat16", "sparsity__active": 8.0,
        "data__buffer_dtype": "bfloat16",
    },
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("case", COUNTED)
def test_memory_is_what_a_run_is_counted_to_hold(case: str) -> None:
    layers, width, batch = 3, 32, 256
    config = small(
        dictionary__features=512, run__batch=batch, run__tokens=2 * batch, sparsity__dead_after_tokens=batch,
        **COUNTED[case],
    )  # fmt: skip
    with LiveBytes() as live:
        loop = looped(config, layers, width)
        for _ in range(2):  # at the second, features are dead
            loop._step()
        step = live.peak
        if "batch_topk" in case:
            n_tokens = 2 * n_batches(batch) * batch  # half to calibrate on, half to compare on: read, widened, shuffled
            wide = [torch.randn(n_tokens, layers, width).bfloat16().float() for _ in range(2)]
            x_BSD, _ = (one[torch.randperm(n_tokens)] for one in wide)
            batches = [
                [loop.state.normalisation.x(source, x_BD) for source, x_BD in enumerate(one.unbind(1))]
                for one in x_BSD[: n_tokens // 2].split(batch)
            ]
            level_scores(loop.state.dictionary, batches, config.sparsity, loop.state.running_cut, FeatureRanks())
    assert (live.peak > step) == ("batch_topk" in case)
    needs = device_memory(TrainingCost(config, replace(TINY, n_layers=layers, d_model=width), 1, 512, on_cpu=True))
    apart = ("language model", "passes of the model", "rows on their way", "activation buffer")
    planned = sum(size for name, size in needs.items() if name not in apart)
    assert 0.95 < planned / live.peak < 1.4


def test_memory_of_the_data_is_what_a_stream_is_counted_to_hold(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", texts(200))
    settings = data_config(tmp_path, run__batch=64, data__buffer_tokens=512, data__sequences_per_pass=8)
    source, parts = stream(settings), data_parts()
    with LiveBytes() as live:
        for _ in range(10):
            source.next()
    work = TrainingCost(settings, ModelSizes.of(parts), 1, 8, on_cpu=True)
    needs = device_memory(work)
    planned = needs["passes of the model"] + needs["rows on their way"] + needs["activation buffer"]
    planned += 64 * work.width * 2 * 4  # the batch that is handed out
    assert 0.9 < planned / live.peak < 1.6


def test_arithmetic_is_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # products with a sparse matrix would be counted as if it were full; bags of rows are not counted
    monkeypatch.setattr("circuit_tracer.kernels.decode.columns._has_sparse_products", lambda device: False)
    layers, width, batch, features = 3, 32, 256, 512
    config = small(dictionary__features=features, run__batch=batch, run__tokens=4 * batch, sparsity__active=8.0)
    loop = looped(config, layers, width)
    loop._step()  # finds a first cut
    with FlopCounterMode(display=False) as counted:
        loop._step()
    work = TrainingCost(config, replace(TINY, n_layers=layers, d_model=width), 1, features, on_cpu=True)
    assert 0.95 < counted.get_total_flops() / flop(work)["encoders"] < 1.3
    parts = data_parts()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        parts.model(input_ids=torch.arange(16)[None])
    model = flop(TrainingCost(data_config(Path(), run__batch=16), ModelSizes.of(parts), 1, 8, on_cpu=True))
    assert 0.9 < counted.get_total_flops() / model["language model"] < 1.3


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b"])
def test_a_step_on_a_gpu_is_what_is_counted_of_it(name: str) -> None:
    """Arithmetic, bytes and launches of a whole step, counted on tensors without memory."""
    pytest.importorskip("triton", reason="triton is not installed here")
    config, sizes = load(name, {"sparsity.anneal": "0"}), PUBLISHED[name]
    work = make_plan(config, sizes, H200).work
    found = counted(config, sizes.n_layers, sizes.d_model)
    # of float32 by bfloat16: three products each
    assert found.flops["encoders/float32 by bfloat16"] == pytest.approx(flop(work)["encoders"], rel=0.02)
    assert PRODUCTS[config.dictionary.dtype] == 3
    moved = moved_bytes(work)
    assert found.bytes["adam"] == pytest.approx(moved["optimizer"], rel=0.02)
    assert found.bytes["decoders forward"] + found.bytes["gradients"] == pytest.approx(moved["decoders"], rel=0.25)
    assert found.launches == pytest.approx(operations(work), rel=0.15)
