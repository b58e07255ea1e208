"""Steering while generating: cache, streams, stops, sampling, directions, bad input."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import (
    Direction,
    Edit,
    Sampling,
    Supernode,
    ablate,
    add,
    scale,
    set_to,
    steer,
    take_from,
)
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.steering.text_stream import TextStream
from tests.support.left_behind import left_behind
from tests.support.tiny import ARCHITECTURES, Letters, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])


def replacement(architecture: str = "llama", dtype: torch.dtype = torch.float64) -> ReplacementModel:
    parts = tiny_model(architecture, dtype), tiny_transcoder(dtype=dtype)
    return ReplacementModel.from_model(*parts, Letters(), architecture)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement()


def mixed(model: ReplacementModel) -> list[Edit | Direction]:
    table = CleanRun(model, IDS).active
    active = [(int(table.layer[n]), int(table.position[n]), int(table.index[n])) for n in (3, 40, 41)]
    free = [f for f in range(20) if (0, f) not in {(layer, index) for layer, _, index in active}]
    vector = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [
        scale(Supernode("three", active), 10.0),
        set_to((0, free[0]), 2.0, at=slice(3, None)),
        add((0, free[1]), 1.5),
        scale((0, free[2]), -2.0, at="generated"),
        take_from((0, free[3]), torch.tensor([1, 5, 6]), at="all", source_at=2),
        Direction(1, vector, 0.7, start=4),
    ]


GREEDY = Sampling(max_new_tokens=6, stop_at_eos=False)


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    list(zip(ARCHITECTURES, cycle((torch.float64, torch.float32)))),
    ids=str,
)
def test_with_and_without_the_cache_the_text_is_the_same(architecture: str, dtype: torch.dtype) -> None:
    model, tolerance = replacement(architecture, dtype), 1e-6 if dtype is torch.float64 else 1e-4
    drawn = Sampling(max_new_tokens=6, temperature=0.8, seed=3, stop_at_eos=False)
    for sampling in (GREEDY, drawn):
        with_cache, without = (
            steer(model, IDS, mixed(model), sampling, cache=cache, keep_logits=True) for cache in (True, False)
        )
        assert with_cache.steered.text == without.steered.text
        assert with_cache.unsteered is not None
        assert without.unsteered is not None
        assert with_cache.unsteered.text == without.unsteered.text
        assert with_cache.steered.logits is not None
        assert without.steered.logits is not None
        torch.testing.assert_close(with_cache.steered.logits, without.steered.logits, rtol=tolerance, atol=tolerance)
        assert with_cache.unsteered.logits is not None
        assert not torch.allclose(with_cache.steered.logits[0], with_cache.unsteered.logits[0])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_values_held_open_are_circuit_tracers_generation(architecture: str) -> None:
    model = replacement(architecture)
    text, logits, _ = model.feature_intervention_generate(
        IDS,
        [(0, slice(2, None), 6, 3.0), (1, 3, 4, 2.0)],
        freeze_attention=False,
        return_activations=False,
        do_sample=False,
        stop_at_eos=False,
        max_new_tokens=6,
    )
    edits = [set_to((0, 6), 3.0, at=slice(2, None)), set_to((1, 3, 4), 2.0)]
    result = steer(model, IDS, edits, GREEDY, compare=False, keep_logits=True)
    assert result.prompt + result.steered.text == text
    assert result.steered.logits is not None
    torch.testing.assert_close(result.steered.logits, logits)
    assert result.unsteered is None


def test_scaled_tokens_to_come_are_scaled_as_they_come(model: ReplacementModel) -> None:
    """The second token's feature is set by hand to twice what it is, which is what scaling does."""
    result = steer(model, IDS, scale((0, 6), 2.0, at="generated"), GREEDY, keep_logits=True)
    first = int(result.steered.ids[0])
    longer = torch.cat([IDS, torch.tensor([first])])
    value = CleanRun(model, longer).activations(0, torch.tensor([6]), torch.tensor([6]))
    logits, _ = model.feature_intervention(longer, [(0, 6, 6, 2 * float(value))], freeze_attention=False)
    assert result.steered.logits is not None
    torch.testing.assert_close(result.steered.logits[1], logits[0, -1])


@pytest.mark.parametrize("place", ["all", None, slice(2, None)])
def test_what_is_silent_on_the_prompt_is_scaled_on_tokens_to_come(model: ReplacementModel, place: Any) -> None:
    _, activations = model.get_activations(IDS)
    silent = [(layer, f) for layer in range(3) for f in range(20) if not activations[layer, :, f].any()]
    edits = [[scale(feature, 50.0, at=at) for feature in silent] for at in (place, "generated")]
    found = [steer(model, IDS, each, GREEDY, keep_logits=True) for each in edits]
    logits, expected, unsteered = (
        each.logits for each in (found[0].steered, found[1].steered, found[0].unsteered) if each is not None
    )
    assert logits is not None
    assert expected is not None
    assert unsteered is not None
    assert torch.equal(logits, expected)
    assert torch.equal(logits[0], unsteered[0])
    assert not torch.allclose(logits, unsteered)
    with pytest.raises(InputError, match="0 times anything is 0"):
        steer(model, IDS, scale(silent[0], 50.0, at="prompt"))


@pytest.mark.parametrize("cache", [True, False])
def test_what_changes_nothing_changes_nothing_bitwise(model: ReplacementModel, cache: bool) -> None:
    _, activations = model.get_activations(IDS)
    dead = [f for f in range(20) if not activations[1, :, f].any()][:1]
    zero = Direction(0, torch.zeros(16, dtype=torch.float64))
    for interventions in ([], [ablate((1, f), at="prompt") for f in dead], [zero], [add((0, 1), 0.0)]):
        result = steer(model, IDS, interventions, GREEDY, cache=cache, keep_logits=True)
        assert result.unsteered is not None
        assert result.steered.logits is not None
        assert result.unsteered.logits is not None
        assert torch.equal(result.steered.logits, result.unsteered.logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_unsteered_is_the_models_own_generation(architecture: str) -> None:
    model = replacement(architecture)
    own = model.hf_model.generate(IDS[None], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    result = steer(model, IDS, [], GREEDY)
    if 2 not in result.steered.ids.tolist():  # generate never chooses the end token here
        assert result.steered.ids.tolist() == own[0, len(IDS) :].tolist()


def test_a_direction_is_added_behind_its_layer(model: ReplacementModel) -> None:
    vector = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = steer(model, IDS, Direction(1, vector, 2.0), GREEDY, keep_logits=True)

    def push(module: Any, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        first = first.clone()
        first[:, 1:] += 2 * vector
        return (first, *output[1:]) if isinstance(output, tuple) else first

    handle = model.parts.layers[1].module.register_forward_hook(push)
    expected = model.hf_model(input_ids=IDS[None]).logits[0, -1]
    handle.remove()
    assert result.steered.logits is not None
    torch.testing.assert_close(result.steered.logits[0], expected, rtol=1e-4, atol=1e-4)
    assert not left_behind(model.hf_model)


# ---- sampling, stops, streams


def test_seeds(model: ReplacementModel) -> None:
    def text(seed: int, **options: Any) -> str:
        return steer(model, IDS, [], Sampling(8, seed=seed, stop_at_eos=False, **options), compare=False).steered.text

    state = torch.random.get_rng_state()
    assert text(3, temperature=1.0) == text(3, temperature=1.0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len({text(seed, temperature=5.0) for seed in range(4)}) > 1
    assert text(1, temperature=1.0, top_k=1) == text(2, temperature=1.0, top_p=1e-6) == text(0)


def test_stops_and_streams(model: ReplacementModel) -> None:
    whole = steer(model, IDS, [], GREEDY, compare=False).steered
    pieces: list[str] = []
    words = whole.text.split()
    stop = f" {words[2]}"
    where = whole.text.find(stop)
    sampling = Sampling(max_new_tokens=6, stop=(stop,), stop_at_eos=False)
    stopped = steer(model, IDS, [], sampling, compare=False, on_text=pieces.append).steered
    assert stopped.finish == "stop"
    assert stopped.text == whole.text[:where]
    assert "".join(pieces) == stopped.text
    assert whole.finish == "length"
    model.tokenizer.eos_token_id = int(whole.ids[1])
    ended = steer(model, IDS, [], Sampling(max_new_tokens=6), compare=False).steered
    model.tokenizer.eos_token_id = 2
    assert ended.finish == "end"
    assert len(ended.ids) <= 2


class Characters:
    """Ids are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("stop", [(), ("END",), ("é!", "NDX")])
def test_a_stream_is_cut_nowhere_it_should_not_be(stop: tuple[str, ...]) -> None:
    text, prompt = "a é! EN END", torch.tensor(list(b"Q: "))
    pieces: list[str] = []
    stream = TextStream(Characters(), prompt, stop, pieces.append)
    ids = prompt
    for byte in text.encode():
        ids = torch.cat([ids, torch.tensor([byte])])
        if stream.add(ids):
            break
    expected = min((text.split(each)[0] for each in stop), key=len, default=text)
    assert stream.finish() == expected == "".join(pieces)
    assert "\ufffd" not in "".join(pieces)


def test_side_by_side(model: ReplacementModel) -> None:
    result = steer(model, IDS, set_to((0, 6), 9.0), GREEDY)
    shown = result.side_by_side(60)
    assert shown.startswith("[unsteered]")
    assert "| [steered]" in shown
    assert all(len(line) <= 60 for line in shown.splitlines())
    alone = steer(model, IDS, set_to((0, 6), 9.0), GREEDY, compare=False)
    assert alone.side_by_side(500) == alone.prompt + alone.steered.text


# ---- bad input


def test_bad_steering(model: ReplacementModel) -> None:
    with pytest.raises(InputError, match="contradictory edits of feature 0/3 on generated"):
        steer(model, IDS, [set_to((0, 3), 1.0, at="generated"), scale((0, 3), 2.0, at="generated")])
    with pytest.raises(InputError, match="contradictory"):
        steer(model, IDS, [set_to((0, 3), 1.0), set_to((0, 3), 2.0)])
    with pytest.raises(InputError, match="source_at"):
        steer(model, IDS, take_from((0, 3), IDS, at="generated"))
    with pytest.raises(InputError, match="layers 0 to 2"):
        steer(model, IDS, Direction(3, torch.ones(16)))
    with pytest.raises(InputError, match="d_model 16"):
        steer(model, IDS, Direction(1, torch.ones(8)))
    with pytest.raises(InputError, match="start is -1"):
        steer(model, IDS, Direction(1, torch.ones(16), start=-1))
    with pytest.raises(InputError, match="context of 64; at most 59"):
        steer(model, IDS, [], Sampling(max_new_tokens=100))
    with pytest.raises(InputError, match="0 times anything is 0"):
        steer(model, IDS, scale((0, 0, 6), 10.0))
    bare = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama")
    with pytest.raises(InputError, match="no tokenizer"):
        steer(bare, IDS, [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": "END"}, "expected a list"),
        ({"stop": ("",)}, "not empty"),
    ],
)
def test_bad_sampling(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Sampling(**options)
