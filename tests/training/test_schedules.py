"""The rule for the learning rate: what it depends on, where it ends, and that it is safe where runs are long."""

from __future__ import annotations

import pytest

from circuit_tracer.training.config.files import load, preset_names
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.schedules import learning_rate, ruled_rate, settled
from tests.support.config_cases import small

SIZES = {
    "gpt2": (12, 768),
    "pythia-70m": (6, 512),
    "pythia-160m": (12, 768),
    "smollm2-135m": (30, 576),
    "gemma-3-270m": (18, 640),
    "llama-3.2-1b": (16, 2048),
    "gemma-2-2b": (26, 2304),
}


def ruled(
    layers: int = 3,
    width: int = 4096,
    steps: int = 500,
    batch: int = 1024,
    features: int = 2048,
    active: float = 8.0,
    kind: str = "clt",
    activation: str = "batch_topk",
) -> float:
    config = small(
        run__batch=batch,
        run__tokens=batch * steps,
        dictionary__features=features,
        dictionary__kind=kind,
        sparsity__active=active,
        sparsity__activation=activation,
        data__buffer_tokens=batch,
    )
    return ruled_rate(config, layers, width)


def test_the_rule_follows_sizes_samples_and_steps() -> None:
    assert ruled() == pytest.approx(schedules.RATE * (4 / 4096**2) ** (1 / 3) / (2 * 1.1) ** 0.5)
    assert ruled(width=8 * 4096) == pytest.approx(ruled() / 4)
    assert ruled(layers=7) == pytest.approx(ruled() / 2**0.5)
    one = ruled(kind="plt")
    assert one == ruled(kind="plt", layers=31) == pytest.approx(2**0.5 * ruled())
    # samples of a feature in a step, however they come about
    more = [ruled(layers=31, batch=8192), ruled(layers=31, features=256), ruled(layers=31, active=64.0)]
    assert more == pytest.approx([2 * ruled(layers=31)] * 3)
    assert ruled(layers=31, batch=2**16) == ruled(layers=31, batch=2**17)
    assert ruled(steps=17_000, width=16384) == pytest.approx(ruled(width=16384) / 2)
    assert ruled(steps=13_500, width=64) == pytest.approx(schedules.HIGHEST * (4 / 32) ** 0.25 / 10)
    assert ruled(activation="jumprelu") == pytest.approx(ruled() / 2)
    assert ruled(steps=13_500, width=64, batch=2**17) == pytest.approx(schedules.HIGHEST / 10)


@pytest.mark.parametrize("name", preset_names())
def test_presets_get_a_rate_that_long_runs_bear(name: str) -> None:
    config = load(name)
    assert config.optimizer.learning_rate is None
    assert config.warmup_steps == 1000
    assert 5e-5 < ruled_rate(config, *SIZES[name]) <= 4e-4


def test_the_rate_that_is_given_is_taken() -> None:
    config = small(optimizer__learning_rate=0.5, optimizer__warmup_steps=2, run__tokens=4096 * 10)
    assert settled(config, 2, 64) == config
    assert [learning_rate(config, step) for step in (0, 1, 7, 9)] == [0.25, 0.5, 0.5, 0.25]
    ruled_config = settled(small(), 2, 64)
    assert ruled_config.optimizer.learning_rate == ruled_rate(small(), 2, 64)


def test_an_extended_run_keeps_the_rate_of_its_schedule() -> None:
    whole, part = small(run__tokens=4096 * 100), small(run__tokens=4096 * 10, run__schedule_tokens=4096 * 100)
    assert ruled_rate(whole, 3, 512) == ruled_rate(part, 3, 512) < ruled_rate(small(run__tokens=4096 * 10), 3, 512)
