"""Every architecture of the table is what its row says, and a wrong row is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError, UnsupportedModelError
from circuit_tracer.models import architectures
from circuit_tracer.models.architecture import NormKind, ValueRows
from circuit_tracer.models.architectures import architecture_of
from circuit_tracer.models.capture import capture, logits_at
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.run import implementation
from circuit_tracer.models.verify import replay, verify
from tests.support.left_behind import left_behind
from tests.support.tiny import ARCHITECTURES, SIZES, tiny_model

IDS = torch.tensor([3, 17, 5, 17, 40, 8, 0, 29])  # longer than the sliding windows
# transformers rounds norms and softmax to float32 even in float64 models
TOLERANCE = {torch.float64: 2e-6, torch.float32: 1e-4, torch.bfloat16: 1e-1}
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def parts_of(name: str, dtype: torch.dtype = torch.float64, **overrides: Any) -> ModelParts:
    return bind(tiny_model(name, dtype, **overrides), name)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def own_logits(parts: ModelParts, ids: Tensor) -> Tensor:
    """Logits (P, V) of the model's own eager forward pass."""
    with torch.no_grad(), implementation(parts, "eager"):
        logits: Tensor = parts.model(input_ids=ids[None], use_cache=False).logits[0]
    return logits


@each_architecture
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_capture_equals_the_models_own_forward_pass(name: str, dtype: torch.dtype) -> None:
    parts = parts_of(name, dtype)
    captured = capture(parts, IDS)
    assert captured.final.dtype == parts.compute_dtype
    expected = own_logits(parts, IDS).to(parts.compute_dtype)
    assert relative_error(logits_at(parts, captured.final), expected) <= TOLERANCE[dtype]


@each_architecture
def test_frozen_network_replays_the_forward_pass(name: str) -> None:
    parts = parts_of(name)
    captured = capture(parts, IDS)
    inputs, final = replay(parts, captured)
    for found, layer in zip(inputs, captured.layers, strict=True):
        assert relative_error(found, layer.resid_mid) <= 1e-12
    assert relative_error(final, captured.final) <= 1e-12


@pytest.mark.few
@each_architecture
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_architecture_is_verified(name: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        verify(bind(tiny_model(name, dtype, seed), name))


@each_architecture
def test_patterns_are_causal_and_their_rows_sum_to_one_or_less(name: str) -> None:
    parts = parts_of(name)
    for pattern in capture(parts, IDS).patterns:
        assert pattern.shape == (parts.config.n_heads, len(IDS), len(IDS))
        assert (pattern >= 0).all()
        assert not pattern.triu(1).any()
        total = pattern.sum(-1)
        if name == "gpt_oss":  # sinks take their share
            assert (total < 1).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_oss"])
def test_sliding_windows_make_patterns_banded(name: str) -> None:
    first = capture(parts_of(name), IDS).patterns[0]
    assert not first.tril(-4).any()
    assert first.tril(-3).any()


@pytest.mark.few
@each_architecture
def test_adjoints_are_the_transposes_of_the_forward_maps(name: str) -> None:
    parts = parts_of(name)
    generator, every = torch.Generator().manual_seed(0), torch.arange(len(IDS))
    for input_hook in ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"):
        for output_hook in ("hook_mlp_out", "mlp.hook_out"):
            if name == "olmo2" and input_hook == "ln2.hook_normalized":
                continue
            network = FrozenNetwork(parts, capture(parts, IDS), input_hook, output_hook)
            x, g = (torch.randn(len(IDS), 16, generator=generator, dtype=torch.float64) for _ in range(2))
            for layer in range(network.n_layers):
                through = network.read(layer, x, constants=False)
                torch.testing.assert_close((g * through).sum(), (network.read_adjoint(layer, g, every) * x).sum())
                through = network.write(layer, x, constants=False)
                torch.testing.assert_close((g * through).sum(), (network.write_adjoint(layer, g, every) * x).sum())
                torch.testing.assert_close(network.write_at(layer, x, every), through)
                back = g[None].clone()
                network.layers[layer].attend_back_(back)
                forward = x + network.layers[layer].attend(x, constants=False)
                torch.testing.assert_close((g * forward).sum(), (back[0] * x).sum())


@each_architecture
def test_frozen_network_is_the_derivative_of_nothing_but_constants(name: str) -> None:
    """Without constants nothing comes out of nothing; with them, the same constants wherever the stream is."""
    parts = parts_of(name)
    network = FrozenNetwork(parts, capture(parts, IDS), "hook_resid_mid", "mlp.hook_out")
    zero = torch.zeros(len(IDS), 16, dtype=torch.float64)
    inputs, final = network.propagate(zero, lambda layer, x: zero, constants=False)
    assert not final.any()
    assert not any(x.any() for x in inputs)


def test_final_softcap_is_applied_to_logits_only() -> None:
    parts = parts_of("gemma2", final_logit_softcapping=0.5)
    captured = capture(parts, IDS)
    capped, plain = logits_at(parts, captured.final), logits_at(parts, captured.final, softcap=False)
    assert float(capped.abs().max()) < 0.5 < float(plain.abs().max())
    assert relative_error(capped, own_logits(parts, IDS)) <= 1e-5
    verify(parts)


def test_gemma_token_vectors_are_scaled() -> None:
    parts = parts_of("gemma3")
    weight = parts.model.get_input_embeddings().weight[IDS]
    torch.testing.assert_close(capture(parts, IDS).embedding, weight * 4.0, rtol=1e-6, atol=1e-6)


def test_absolute_positions_are_kept_apart_from_tokens() -> None:
    parts = parts_of("gpt2")
    captured = capture(parts, IDS)
    assert captured.position_embedding is not None
    torch.testing.assert_close(captured.embedding, parts.model.transformer.wte.weight[IDS])
    torch.testing.assert_close(captured.position_embedding, parts.model.transformer.wpe.weight[: len(IDS)])


# Rows that are wrong in one place; the number of each is what a reader of a model card could get wrong.
WRONG_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-norms-as-plain-rms": ("gemma3", {"norm": NormKind.RMS}),
    "llama-norms-as-gemmas": ("llama", {"norm": NormKind.RMS_PLUS_ONE}),
    "llama-norms-centred": ("llama", {"norm": NormKind.LAYER}),
    "gpt2-norms-not-centred": ("gpt2", {"norm": NormKind.RMS}),
    "gemma-without-attention-post-norm": ("gemma2", {"attention_post_norm": None}),
    "gemma-without-mlp-post-norm": ("gemma2", {"mlp_post_norm": None}),
    "gemma-mlp-norm-of-llama": ("gemma2", {"mlp_norm": "post_attention_layernorm"}),
    "llama-without-attention-norm": ("llama", {"attention_norm": None}),
    "olmo2-norms-in-front": ("olmo2", {"attention_norm": "post_attention_layernorm", "attention_post_norm": None}),
    "keys-read-as-values": ("qwen2", {"value": "self_attn.k_proj"}),
    "neox-interleaving-as-a-tail": ("gpt_neox", {"value_rows": ValueRows.TAIL}),
    "neox-taken-for-sequential": ("gpt_neox", {"parallel_flag": None}),
    "positions-forgotten": ("gpt2", {"position_embedding": None}),
}


@pytest.mark.parametrize(("name", "change"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_caught_when_the_model_loads(
    name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)
    right = architectures.ARCHITECTURES[model.config.model_type]
    monkeypatch.setitem(architectures.ARCHITECTURES, model.config.model_type, replace(right, **change))
    with pytest.raises(UnsupportedModelError, match=r"differs by|no part|shape"):
        verify(bind(model, name))


def test_a_part_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(architectures.ARCHITECTURES["llama"], mlp="feed_forward")
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", wrong)
    with pytest.raises(UnsupportedModelError, match="LlamaDecoderLayer has no part 'feed_forward'"):
        bind(tiny_model("llama"), "llama")


def test_an_unknown_architecture_is_named_and_the_known_ones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(architectures.ARCHITECTURES, "gpt2")
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' .*Supported: .*gemma2.*llama.*qwen3") as caught:
        bind(tiny_model("gpt2"), "gpt2")
    for known in architectures.ARCHITECTURES:
        assert known in str(caught.value)


def test_the_table_covers_what_is_promised() -> None:
    promised = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi3", "olmo2"}
    promised.add("gpt_oss")
    assert promised <= set(architectures.ARCHITECTURES)
    assert all(architecture_of(tiny_model(name).config).model_type in promised for name in ARCHITECTURES)


def test_quantised_weights_are_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(24, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedModelError, match=r"int8.*quantised"):
        bind(model, "llama")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_reported_with_their_layer(bad: float) -> None:
    parts = parts_of("llama")
    parts.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = bad
    with pytest.raises(NumericalError, match="layer 1 are not finite"):
        capture(parts, IDS)


def test_final_norm_that_is_not_finite_is_reported() -> None:
    parts = parts_of("llama")
    parts.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(NumericalError, match="finite"):
        capture(bind(parts.model, "llama"), IDS)


def test_prompts_that_do_not_fit_are_refused() -> None:
    parts = parts_of("llama")
    with pytest.raises(InputError, match=r"65 tokens.*context length is 64"):
        capture(parts, torch.ones(65, dtype=torch.int64))
    for ids, span in (([1, 47], r"1\.\.47"), ([-1, 3], r"-1\.\.3")):
        with pytest.raises(InputError, match=rf"span {span}.*0\.\.46"):
            capture(parts, torch.tensor(ids))
    assert capture(parts, torch.ones(64, dtype=torch.int64)).n_pos == 64


def test_layers_are_counted() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = SIZES["num_hidden_layers"] + 1
    with pytest.raises(UnsupportedModelError, match="3 layers, the configuration says 4"):
        bind(model, "llama")


def test_hooks_are_gone_after_a_capture_even_if_it_fails() -> None:
    parts = parts_of("llama")
    before = own_logits(parts, IDS)
    capture(parts, IDS)
    with pytest.raises(InputError):
        capture(parts, torch.tensor([99]))
    parts.model.model.layers[1].mlp.down_proj.weight.data *= float("nan")
    with pytest.raises(NumericalError):
        capture(parts, IDS)
    assert not left_behind(parts.model)
    assert torch.isfinite(before).all()
