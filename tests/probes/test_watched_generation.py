"""Probes that look on while a model writes, and steering from where one fires."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import Direction, Edit, Sampling, set_to, steer
from circuit_tracer.probes.generation import GenerationWatch
from circuit_tracer.probes.monitor import feature_watch
from circuit_tracer.probes.probe import POOLS, Probe
from circuit_tracer.probes.reading import Reads, Subject, Tokens, pooled, read_batch, scored, tokens_of
from circuit_tracer.probes.reading import columns as columns_of

SAMPLING = Sampling(max_new_tokens=12, stop_at_eos=False)
SHIFT = Direction(1, torch.randn(128, generator=torch.Generator().manual_seed(5)), 3.0, name="shift")


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=torch.float32)


def probes(threshold: float = 0.0) -> list[Probe]:
    chance = torch.Generator().manual_seed(0)
    weight = partial(torch.randn, 129, generator=chance)
    return [
        *(Probe(each, "hook_resid_post", 2, weight(), 0.3, threshold, each, ((1, 3),)) for each in POOLS),
        feature_watch("2/12"),
    ]


def whole_text(model: ReplacementModel, written: torch.Tensor) -> Tokens:
    """Prompt and continuation as they were read."""
    prompt = tokens_of(PROMPT, Subject.of(model))
    ids = torch.cat([prompt.ids, written])
    counted = torch.ones(len(ids), dtype=torch.bool).numpy()
    counted[0] = False
    nowhere = torch.zeros(len(ids), dtype=torch.int64).numpy()
    return Tokens("", ids, nowhere, nowhere, counted)


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_scores_are_those_of_a_fresh_pass_over_the_whole_text(model: ReplacementModel, cache: bool) -> None:
    watch = GenerationWatch(model, probes())
    result = steer(model, PROMPT, [], SAMPLING, compare=True, cache=cache, watcher=watch)
    assert result.unsteered is not None
    assert result.steered.ids.tolist() == result.unsteered.ids.tolist()  # who looks on changes nothing
    text = whole_text(model, result.steered.ids)
    assert watch.scores.shape == (len(text.ids), len(probes()))
    assert bool(watch.scores[0].isnan().all())
    for number, probe in enumerate(probes()):
        found = read_batch(Subject.of(model), [text], Reads.of(probe))[0]
        if probe.pool in ("token", "last"):
            expected = scored(probe, found).tokens[1:]
        else:  # of the text up to each token
            values = columns_of(probe, found)
            parts = [pooled(values[: at + 1], text.counted[: at + 1], probe.pool) for at in range(1, len(text.ids))]
            expected = torch.cat([probe.score(part) for part in parts])
        torch.testing.assert_close(watch.scores[1:, number], expected, rtol=1e-5, atol=1e-4)


def test_interventions_hold_from_the_token_after_a_probe_has_fired(model: ReplacementModel) -> None:
    plain = GenerationWatch(model, probes())
    unsteered = steer(model, PROMPT, [], SAMPLING, compare=False, watcher=plain).steered
    n_prompt = len(model.ensure_tokenized(PROMPT))
    high = plain.scores[n_prompt:-1, 0]
    at = n_prompt + int(high.argmax())  # fires there first, if the prompt does not
    threshold = float((plain.scores[1:at, 0].max() + plain.scores[at, 0]) / 2)
    assert plain.scores[at, 0] > threshold, "the seed of the probe has its highest score in the prompt"
    found = {}
    for cache in (True, False):
        watch = GenerationWatch(model, probes(threshold), steer_when=["token"])
        steered = steer(model, PROMPT, [SHIFT], SAMPLING, compare=False, cache=cache, watcher=watch).steered
        assert (watch.fired["token"], watch.since) == (at, at + 1)
        kept = at + 2 - n_prompt  # what the firing pass chose is still the model's own
        assert steered.ids[:kept].tolist() == unsteered.ids[:kept].tolist()
        torch.testing.assert_close(watch.scores[: at + 1], plain.scores[: at + 1], equal_nan=True, rtol=1e-5, atol=1e-4)
        found[cache] = (steered, watch.scores)
    torch.testing.assert_close(found[True][1], found[False][1], equal_nan=True, rtol=1e-5, atol=1e-4)
    # the same interventions from that position on, by hand
    shifted = Direction(SHIFT.layer, SHIFT.vector, SHIFT.strength, start=at + 1)
    by_hand = GenerationWatch(model, probes())
    again = steer(model, PROMPT, [shifted], SAMPLING, compare=False, watcher=by_hand).steered
    assert again.ids.tolist() == found[True][0].ids.tolist()
    torch.testing.assert_close(by_hand.scores, found[True][1], equal_nan=True, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(by_hand.scores[at + 1 :, 0], plain.scores[at + 1 :, 0], atol=0.1)


def test_without_a_firing_probe_nothing_is_changed(model: ReplacementModel) -> None:
    watch = GenerationWatch(model, probes(1e9), steer_when=["token"])
    edits: list[Edit | Direction] = [SHIFT, set_to((1, 5), 30.0, at="all")]
    result = steer(model, PROMPT, edits, SAMPLING, watcher=watch)
    assert watch.since is None
    assert watch.fired.keys() <= {"feature 2/12"}
    assert result.unsteered is not None
    assert result.steered.ids.tolist() == result.unsteered.ids.tolist()


def test_a_probe_that_steers_must_be_watching(model: ReplacementModel) -> None:
    with pytest.raises(InputError, match="called nobody; there are token"):
        GenerationWatch(model, probes(), steer_when=["nobody"])
