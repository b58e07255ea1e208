"""Activations of a batched pass are those of tracing; the pass stops early; what is left out, and what is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.models import attention
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.run import fast_attention, implementation
from circuit_tracer.models.sites import AUTOENCODED, INPUT_HOOKS, OUTPUT_HOOKS
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.training.config.schema import DictionarySection
from circuit_tracer.training.data.filters import kept_tokens
from circuit_tracer.training.data.norms import require_finite, token_norms
from circuit_tracer.training.data.points import points_of, width_of
from tests.support import data_cases
from tests.support.data_cases import BOS, EOS, PAD
from tests.support.left_behind import left_behind
from tests.support.tiny import ARCHITECTURES, tiny_model

IDS = torch.tensor([[1, 17, 5, 17, 40, 8, 22], [1, 9, 9, 2, 30, 31, 46], [1, 3, 4, 5, 6, 7, 8]])
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


def traced(parts: ModelParts, ids: Tensor, input_hook: str, output_hook: str) -> tuple[list[Tensor], list[Tensor]]:
    """Transcoder inputs and outputs of one prompt as tracing sees them."""
    network = FrozenNetwork(parts, capture(parts, ids), input_hook, output_hook)
    layers = range(len(parts.layers))
    return [network.transcoder_input(layer) for layer in layers], [network.transcoder_output(layer) for layer in layers]


def run(parts: ModelParts, points: Points, ids: Tensor = IDS) -> tuple[list[Tensor], list[Tensor]]:
    with fast_attention(parts):
        return ModelPass(parts, points, ids.shape[1]).run(ids)


@pytest.mark.parametrize("place", AUTOENCODED)
def test_an_activation_is_as_wide_where_an_autoencoder_stands_as_is_said(place: str) -> None:
    parts = bind(tiny_model("gemma2", torch.float32), "gemma2")
    section = DictionarySection(features=4, kind="sae", point=place)  # type: ignore[arg-type]
    x, _ = run(parts, points_of(section, parts))
    assert width_of(section, parts) == x[0].shape[-1] == (24 if place == "attn.hook_z" else 16)


@pytest.mark.few
@pytest.mark.parametrize(("name", "input_hook", "output_hook"), list(product(ARCHITECTURES, INPUT_HOOKS, OUTPUT_HOOKS)))
def test_rows_are_those_of_tracing(name: str, input_hook: str, output_hook: str) -> None:
    parts = bind(tiny_model(name, torch.float32), name)
    if input_hook == "ln2.hook_normalized" and parts.layers[0].mlp_norm is None:
        with pytest.raises(CompatibilityError, match="has no norm before its MLP"):
            points_of(DictionarySection(features=4, input_hook=input_hook), parts)  # type: ignore[arg-type]
        return
    x, y = run(parts, Points((0, 1, 2), input_hook, output_hook))
    for number, ids in enumerate(IDS):
        rows = slice(number * len(ids), (number + 1) * len(ids))
        inputs, outputs = traced(parts, ids, input_hook, output_hook)
        for found, expected in zip([*x, *y], [*inputs, *outputs], strict=True):
            torch.testing.assert_close(found[rows], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.few
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("point", RESIDUAL)
def test_an_sae_reads_the_residual_stream(name: str, point: str) -> None:
    parts = bind(tiny_model(name, torch.float32), name)
    points = points_of(DictionarySection(kind="sae", features=4, layers=[0, 2], point=point), parts)  # type: ignore[arg-type]
    x, y = run(parts, points)
    assert x is y
    if point == "hook_resid_mid":
        expected = [run(parts, Points((layer,), point, "hook_mlp_out"))[0][0] for layer in (0, 2)]
    else:
        with implementation(parts, attention.NAME):
            hidden = parts.model.base_model(input_ids=IDS, output_hidden_states=True).hidden_states
        last = layer_output(parts, 2)
        expected = [hidden[0], hidden[2]] if point == "hook_resid_pre" else [hidden[1], last]
    for found, wanted in zip(x, expected, strict=True):
        torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=2e-5, atol=2e-5)


def layer_output(parts: ModelParts, layer: int) -> Tensor:
    """What a layer hands on (transformers' last hidden state has the final norm in it)."""
    found: list[Any] = []
    handle = parts.layers[layer].module.register_forward_hook(lambda module, args, output: found.append(output))
    parts.model.base_model(input_ids=IDS)
    handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def test_the_pass_stops_behind_the_last_layer_needed() -> None:
    parts = bind(tiny_model("llama", torch.float32), "llama")
    ran: list[int] = []
    for index, layer in enumerate(parts.layers):
        layer.module.register_forward_pre_hook(lambda module, args, index=index: ran.append(index))
    parts.final_norm.module.register_forward_pre_hook(lambda module, args: ran.append(-1))
    before = left_behind(parts.model)
    run(parts, Points((0, 1), "hook_resid_mid", "hook_mlp_out"))
    assert ran == [0, 1]
    assert left_behind(parts.model) == before


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_fast_attention_is_given_back(name: str) -> None:
    parts = bind(tiny_model(name, torch.float32), name)
    parts.model.set_attn_implementation("eager")
    with fast_attention(parts):
        used = parts.model.config._attn_implementation
    assert used == ("sdpa" if name == "llama" else attention.NAME)
    assert parts.model.config._attn_implementation == "eager"


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="names layer 3; the model's layers are 0 to 2"):
        points_of(DictionarySection(kind="plt", features=4, layers=[1, 3]), data_cases.parts())


def test_sequences_beyond_the_context_are_refused() -> None:
    with pytest.raises(InputError, match="context_length is 65, but the model's context length is 64; use at most 64"):
        ModelPass(data_cases.parts(), Points((0,), "hook_resid_mid", "hook_mlp_out"), 65)


@pytest.mark.parametrize("wrong", [47, -1])
def test_ids_beyond_the_vocabulary_are_refused(wrong: int) -> None:
    ids = torch.tensor([[1, 5, wrong]])
    with pytest.raises(CompatibilityError, match=rf"token id {wrong}, but the model's vocabulary is 0..46"):
        run(data_cases.parts(), Points((0,), "hook_resid_mid", "hook_mlp_out"), ids)


def test_an_activation_that_is_not_finite_names_its_layer() -> None:
    parts = bind(tiny_model("llama", torch.float32), "llama")
    parts.layers[1].mlp.down_proj.weight[3, 2] = float("nan")  # type: ignore[index, union-attr]
    x, y = run(parts, Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out"))
    require_finite(token_norms(x)[:, :2], (0, 1), "hook_resid_mid")
    with pytest.raises(NumericalError, match="hook_mlp_out of layer 1 are not finite for 21 of 21 tokens"):
        require_finite(token_norms(y), (0, 1, 2), "hook_mlp_out")


SPECIAL = SpecialTokens(BOS, EOS, PAD, (PAD, BOS, EOS))


def test_position_0_and_special_tokens_are_left_out() -> None:
    ids = torch.tensor([[7, 5, EOS, 6], [BOS, BOS, 8, PAD]])
    assert kept_tokens(ids, torch.ones(8, 2), SPECIAL, 10.0).tolist() == [1, 3, 6]
    assert kept_tokens(ids[:, :1], torch.ones(2, 2), SPECIAL, 10.0).tolist() == []


def test_tokens_with_a_long_input_at_any_layer_are_left_out() -> None:
    ids = torch.full((1, 9), 5)
    norms = torch.ones(9, 2)
    norms[3, 1], norms[6, 0], norms[0] = 10.5, 9.5, 1e6
    assert kept_tokens(ids, norms, SPECIAL, 10.0).tolist() == [1, 2, 4, 5, 6, 7, 8]


@given(st.integers(0, 2**31), st.floats(1.1, 20))
@settings(deadline=None, max_examples=30)
def test_the_scale_of_a_layer_has_no_effect_on_what_is_left_out(seed: int, ratio: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 47, (3, 7), generator=draw)
    norms = torch.rand(21, 3, generator=draw).exp().pow(4)
    kept = kept_tokens(ids, norms, SPECIAL, ratio)
    assert torch.equal(kept, kept_tokens(ids, norms * torch.tensor([2.0, 0.25, 1024.0]), SPECIAL, ratio))
    assert torch.equal(kept, kept.unique())
    flat = ids.flatten()
    assert not any(int(flat[row]) in SPECIAL.dropped or int(row) % 7 == 0 for row in kept)
