"""A plan is made at once, however long the prompt."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from circuit_tracer.attribution import trace_sizes
from circuit_tracer.attribution.plan import plan_memory
from circuit_tracer.attribution.trace_sizes import TraceSizes
from circuit_tracer.errors import ResourceError
from circuit_tracer.models.config import ModelConfig

NAMES = dict.fromkeys(("tokenizer_name", "model_name", "original_architecture"), "")
SMOLLM2 = ModelConfig(30, 576, 64, 9, 1536, 49152, n_key_value_heads=3, dtype="float32", **NAMES)
GEMMA2 = ModelConfig(26, 2304, 256, 8, 9216, 256000, n_key_value_heads=4, dtype="float32", **NAMES)


def sizes(config: ModelConfig, n_pos: int, n_rows: int | None, active: int = 50) -> TraceSizes:
    counts = torch.full((config.n_layers, n_pos), active)
    counts[:, 0] = 0
    total = int(counts.sum())
    return TraceSizes(config, counts, counts.cumsum(0), 10, min(n_rows or total, total), 16384, False, 4)


@pytest.mark.few
@pytest.mark.parametrize("config", [SMOLLM2, GEMMA2], ids=["smollm2", "gemma2"])
@pytest.mark.parametrize("n_rows", [None, 4096], ids=["all features", "4096 features"])
@pytest.mark.parametrize("budget", [4, 64, 10**6], ids="{}GB".format)
def test_a_plan_for_4000_tokens_takes_less_than_a_second(config: ModelConfig, n_rows: int | None, budget: int) -> None:
    work, started = sizes(config, 4000, n_rows), time.process_time()
    try:
        plan = plan_memory(work, 2 * 10**9, budget * 10**9, 512)
        assert plan.fits()
    except ResourceError as error:
        advised = str(error).partition("max_feature_nodes=")[2].partition(" ")[0]
        if advised:
            assert plan_memory(replace(work, n_rows=int(advised)), 2 * 10**9, budget * 10**9, 512).fits()
    assert time.process_time() - started < 1


@pytest.mark.parametrize("n_rows", [None, 3000], ids=["all features", "3000 features"])
def test_a_sample_of_the_rows_stands_for_all(n_rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    work = sizes(SMOLLM2, 40, n_rows, active=10)
    sampled = [work.edge_rows(work.blocks(64)), work.in_flight(work.blocks(64)), work.graph()]
    monkeypatch.setattr(trace_sizes, "SAMPLED_ROWS", 10**9)
    work = sizes(SMOLLM2, 40, n_rows, active=10)
    assert sampled == pytest.approx(
        [work.edge_rows(work.blocks(64)), work.in_flight(work.blocks(64)), work.graph()], 0.03
    )
