"""`train --find`: trials on the run's own activations, the rate they show, and that nothing else is written."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import NumericalError
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import find
from circuit_tracer.training.run.find import Found, Trial, best_rate, held_out_error
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step import schedules
from tests.support.loop_cases import LAYERS, WIDTH, Run

CPU = torch.device("cpu")
RUN = Run("clt", "batch_topk", steps=8)


def found(run: Run = RUN, **changes: Any) -> Found:
    stream = run.stream()
    batches, held_out = [stream.batch(number) for number in range(3)], stream.batch(9)
    return best_rate(run.config(**changes), run.space(), batches, held_out, CPU, FeatureRanks())


@pytest.mark.slow("takes 1.4 s")
def test_the_best_rate_lies_between_two_others_and_is_found_again() -> None:
    first = found(optimizer__learning_rate=None)
    rates, errors = [one.rate for one in first.trials], [one.error for one in first.trials]
    assert len(rates) <= find.MOST
    assert [later / earlier for earlier, later in pairwise(rates)] == pytest.approx([find.FACTOR] * (len(rates) - 1))
    place = errors.index(min(errors))
    if not first.at_an_end:
        assert rates[place - 1] < first.learning_rate < rates[place + 1]
    assert first == found(optimizer__learning_rate=1e-5), "the rate that is set is not asked"


@pytest.mark.parametrize(
    ("errors", "lowest"),
    [((3.0, 2.0, 3.0), 2.0), ((3.0, 2.0, 2.0), 2.0 * 2**0.5), ((1.0, 2.0, 3.0), 1.0), ((2.0, 1.0, math.inf), 2.0)],
    ids=["middle", "between", "end", "broken"],
)
def test_the_lowest_point_of_a_parabola(errors: tuple[float, ...], lowest: float) -> None:
    trials = [Trial(2.0**number, error, 1.0, 0.0, 0.0) for number, error in enumerate(errors)]
    assert find._lowest(trials) == pytest.approx(lowest)


def test_a_longer_run_gets_what_the_rule_says_about_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "TRIAL_STEPS", (4, 4))
    monkeypatch.setattr(schedules, "HIGHEST", 1.0)
    long = Run("clt", "batch_topk", steps=20_000)
    short = found(Run("clt", "batch_topk", steps=4))
    longer = found(long)
    assert longer.trials == short.trials
    assert longer.trial_steps == 4
    ratio = schedules.ruled_rate(long.config(), LAYERS, WIDTH) / schedules.ruled_rate(
        Run(steps=4).config(), LAYERS, WIDTH
    )
    assert longer.learning_rate == pytest.approx(ratio * short.learning_rate)
    assert ratio < 0.6


def test_trials_begin_where_the_run_does(tmp_path: Path) -> None:
    """With run.start_from these are the weights of another run."""
    made = RUN.loop(tmp_path)
    made.run()
    learned = made.state.dictionary.tensors()

    def taken_over(state: TrainingState) -> None:
        for name, weight in state.dictionary.tensors().items():
            weight.copy_(learned[name])

    rate, batches = 1e-9, [RUN.stream().batch(0)]
    trials = [
        find.trial(
            RUN.config(), rate, RUN.space(), find.Repeated(batches, CPU), batches[0], CPU, FeatureRanks(), *begin
        )
        for begin in ([], [taken_over])
    ]
    assert trials[1].error < 0.9 * trials[0].error


def test_activations_that_break_every_trial_are_an_error() -> None:
    stream = RUN.stream()
    broken = stream.batch(0)
    broken = ActivationBatch(broken.x_BSD, broken.y_BSD * math.nan)
    with pytest.raises(NumericalError, match=r"no learning rate from .* trains: look for broken activations"):
        best_rate(RUN.config(), RUN.space(), [broken], stream.batch(1), CPU, FeatureRanks())


@pytest.mark.parametrize("run", [Run("clt", "topk"), Run("skip", "jumprelu")], ids=str)
def test_the_error_is_that_of_the_dense_reconstruction(run: Run) -> None:
    state, config, held_out = run.state(), run.config(), run.stream().batch(4)
    dictionary, space = state.dictionary, state.normalisation
    for decoder in dictionary.W_dec:
        decoder.mul_(3)
    error, active, never, emptiest = held_out_error(state, config, held_out, CPU, FeatureRanks())
    x_SBD = [space.x(source, held_out.x_BSD[:, source]) for source in range(LAYERS)]
    acts = []
    for source, x_BD in enumerate(x_SBD):
        pre_BF = x_BD @ dictionary.W_enc[source].T + dictionary.b_enc[source]
        if run.activation == "topk":
            k = round(config.sparsity.active)
            acts.append(pre_BF * (pre_BF >= pre_BF.topk(k).values[:, -1:]) * (pre_BF > 0))
        else:
            acts.append(pre_BF * (pre_BF > dictionary.thresholds(source)))
    y_BSD = dictionary.b_dec.expand_as(held_out.y_BSD).clone()
    for source, a_BF in enumerate(acts):
        y_BSD.flatten(1)[:, dictionary.columns(source)] += a_BF @ dictionary.W_dec[source]
    if dictionary.W_skip is not None:
        y_BSD += torch.einsum("sbd,sed->bse", torch.stack(x_SBD), dictionary.W_skip)
    expected = (y_BSD - space.y(held_out.y_BSD)).square().mean()
    assert error == pytest.approx(float(expected), rel=1e-5)
    fired_SBF = torch.stack(acts) > 0
    assert active == pytest.approx(float(fired_SBF.sum()) / (LAYERS * held_out.n_tokens))
    never_S = (~fired_SBF.any(1)).float().mean(1)
    assert (never, emptiest) == pytest.approx((float(never_S.mean()), float(never_S.max())))


def test_the_report_names_the_option_to_paste() -> None:
    trials = [Trial(1e-3, 0.5, 4.0, 0.0, 0.0), Trial(2e-3, 0.4, 4.0, 0.25, 0.5)]
    text = str(Found(trials, 100, 1.234e-3, 1e-3, at_an_end=True))
    assert "--optimizer.learning_rate 0.0012 (the rule: 0.001); the best rate tried is at the end" in text
    assert "25.0 %" in text
