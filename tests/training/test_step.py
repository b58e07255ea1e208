"""The sparse training step equals the dense reference: loss, terms and every gradient, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step import step
from circuit_tracer.training.step.counter_random import uniform
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.scratch import Scratch
from circuit_tracer.training.step.step import Batch, Moment, StepOutcome, train_step
from tests.support.reference_cases import Case, Example, cases, each_case, make, parameters

TOLERANCE = 1e-9
STEP = 3  # keys the random band


class Collected:
    """A sink that keeps gradients, and refuses a parameter's second one."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.found: dict[str, Tensor] = {}

    def gradient(self, name: str, grad: Tensor) -> None:
        assert name not in self.found
        self.found[name] = grad.clone()

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        whole = self.found.setdefault(f"W_dec.{source}", torch.full_like(self.dictionary.W_dec[source], torch.nan))
        assert whole[rows].isnan().all()
        whole[rows] = grad_nC


def dictionary_of(example: Example) -> Dictionary:
    weights = example.weights
    lists = (weights.log_threshold, weights.log_scale, weights.b_mag)
    with torch.no_grad():
        return Dictionary(
            example.kind,
            weights.W_enc[0].shape[0],
            slice(0, weights.W_enc[0].shape[0]),
            [tensor.detach().clone() for tensor in weights.W_enc],
            [tensor.detach().clone() for tensor in weights.b_enc],
            [tensor.detach().clone() for tensor in weights.W_dec],
            weights.b_dec.detach().clone(),
            None if weights.W_skip is None else weights.W_skip.detach().clone(),
            *([one.detach().clone() for one in held] if held else None for held in lists),
            *(None if tensor is None else tensor.detach().clone() for tensor in (weights.W_router, weights.b_router)),
        )


def run(
    example: Example, running_cut: float | None = None, scratch: Scratch | None = None
) -> tuple[StepOutcome, dict[str, Tensor]]:
    dictionary, options = dictionary_of(example), example.options
    derivatives = "direction_BSD" in options
    batch = Batch(
        list(example.x_BSD.unbind(1)),
        example.y_BSD,
        list(options["direction_BSD"].unbind(1)) if derivatives else None,
        list(options["derivative_BSD"].unbind(1)) if derivatives else None,
    )
    moment = Moment(
        STEP,
        options["active"],
        options["penalty"] if rule_of(example.settings).has_penalty else 0.0,
        options["dead"],
        options["running_cut"] if running_cut is None else running_cut,
        options.get("derivative_scale_S"),
    )
    sink, scratch = Collected(dictionary), scratch or Scratch()
    return train_step(dictionary, batch, example.settings, moment, sink, FeatureRanks(), scratch), sink.found


def with_drawn_band(example: Example) -> Example:
    """Let the reference see the near misses that the step will draw."""
    share = example.settings.band_probability
    if "band" in example.options:
        n_tokens, n_features = example.x_BSD.shape[0], example.weights.W_enc[0].shape[0]
        counter = torch.arange(n_tokens * n_features).view(n_tokens, n_features)
        bands = [(uniform(counter, STEP, source) < share).double() / share for source in range(example.x_BSD.shape[1])]
        example.options["band"] = bands
    return example


def compare(case: Case, running_cut: float | None = None) -> None:
    example = with_drawn_band(make(case))
    outcome, found = run(example, running_cut)
    loss, terms = example.loss()
    for name, term in terms.items():
        assert outcome.terms.get(name, 0.0) == pytest.approx(float(term.detach()), rel=TOLERANCE, abs=TOLERANCE), name
    assert outcome.loss == pytest.approx(float(loss.detach()), rel=TOLERANCE, abs=TOLERANCE)
    wanted = example.gradients()
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        scale = max(1.0, float(grad.abs().max()))
        worst = float((found[name].view_as(grad) - grad).abs().max())
        assert worst <= TOLERANCE * scale, f"{name} differs by {worst}"


@pytest.mark.few
@each_case
def test_loss_and_every_gradient_are_those_of_the_reference(case: Case) -> None:
    compare(case)


@hypothesis_settings(max_examples=150, deadline=None)
@given(cases())
def test_loss_and_every_gradient_are_those_of_the_reference_for_any_case(case: Case) -> None:
    compare(case)


@pytest.mark.parametrize("guess", [1e-6, 0.5, 3.0, 1e6], ids=lambda guess: f"cut{guess:g}")
def test_the_first_guess_of_the_cut_changes_nothing(guess: float) -> None:
    example = make(Case("clt", "batch_topk", 3, 63, 37, 6)).with_settings(pre_activation_weight=0.0)
    reference_outcome, reference_found = run(example)
    outcome, found = run(example, guess)
    assert outcome.cut == reference_outcome.cut
    assert all(torch.equal(found[name], grad) for name, grad in reference_found.items())


@pytest.mark.parametrize("in_memory", [1, 5 * 3 * 6 * 4, 10**9], ids=lambda n: f"{n}bytes")
@pytest.mark.parametrize("handed_over", [1, 2 * 3 * 6 * 4], ids=lambda n: f"{n}bytes")
def test_blocks_of_decoder_rows_change_nothing(
    in_memory: int, handed_over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "GRADIENT_BYTES", in_memory)
    monkeypatch.setattr(step, "BLOCK_BYTES", handed_over)
    compare(Case("clt", "jumprelu", 3, 63, 37, 6))


def test_memory_of_earlier_steps_changes_nothing() -> None:
    scratch = Scratch()
    for case in (Case("clt", "topk", 3, 63, 37, 6), Case("skip", "jumprelu"), Case("clt", "topk", 3, 63, 37, 6)):
        example = make(case)
        fresh_outcome, fresh = run(example)
        outcome, found = run(example, scratch=scratch)
        assert outcome.terms == fresh_outcome.terms
        assert all(torch.equal(found[name], grad) for name, grad in fresh.items())
        for held in scratch._held.values():
            held.fill_(torch.nan)


def test_every_parameter_gets_a_gradient() -> None:
    example = make(Case("skip", "jumprelu"))
    _, found = run(example)
    assert found.keys() == parameters(example.weights).keys() == dictionary_of(example).tensors().keys()


def test_a_loss_that_is_not_finite_names_the_layer_and_changes_nothing() -> None:
    example = make(Case("clt", "batch_topk", n_layers=3))
    with torch.no_grad():
        example.weights.b_dec[1, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"layer 1 is nan"):
        run(example)


def test_how_often_each_feature_fired_is_counted() -> None:
    example = make(Case("clt", "relu", n_tokens=63))
    outcome, _ = run(example)
    for source, fired in enumerate(outcome.fired):
        pre = example.x_BSD[:, source] @ example.weights.W_enc[source].T + example.weights.b_enc[source]
        assert torch.equal(fired, (pre > 0).sum(0))


@pytest.mark.slow("a step whose arrays are larger than every block: 5 s")
def test_the_number_of_workers_changes_no_bit_of_a_large_step() -> None:
    """Wide enough that encoders are scanned in several blocks, and products in several chunks."""
    layers, width, n_features, n_tokens = 2, 768, 8192, 2048
    generator = torch.Generator().manual_seed(0)
    x_BSD, y_BSD = (torch.randn(n_tokens, layers, width, generator=generator) for _ in range(2))
    dictionary = Dictionary.initial("clt", layers, n_features, width)
    silent = [torch.zeros(n_features, dtype=torch.bool) for _ in range(layers)]

    def found(n_workers: int) -> tuple[StepOutcome, dict[str, Tensor]]:
        before = torch.get_num_threads()
        torch.set_num_threads(n_workers)
        try:
            sink, batch = Collected(dictionary), Batch(list(x_BSD.unbind(1)), y_BSD)
            moment = Moment(STEP, 16.0, 0.0, silent)
            settings = SparsitySection(active=16.0)
            return train_step(dictionary, batch, settings, moment, sink, FeatureRanks(), Scratch()), sink.found
        finally:
            torch.set_num_threads(before)

    (one, alone), (two, together) = found(1), found(2)
    assert sum(int(fired.sum()) for fired in one.fired) == 16 * layers * n_tokens
    assert all(torch.equal(*pair) for pair in zip(one.fired, two.fired, strict=True))
    assert alone.keys() == together.keys() == dictionary.tensors().keys()
    for name, grad in alone.items():
        if name != "b_dec":  # torch itself sums that, over its own threads
            assert torch.equal(grad, together[name]), name
