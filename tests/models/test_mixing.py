"""What stands between the two projections of attention: patterns with scales and convolutions, forwards and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, UnsupportedModelError
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.capture import capture, logits_at
from circuit_tracer.models.mixing import Held, Mixing, Scales, convolved
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.queries_keys import read_scores
from circuit_tracer.models.run import ModelRun, implementation, read
from circuit_tracer.models.side_patterns import SidePatterns
from tests.support.tiny import tiny_model

P, H, K, D_HEAD, J = 6, 4, 2, 3, 3
IDS = torch.tensor([3, 17, 5, 17, 40, 8])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scales_of(n: int) -> Scales:
    return Scales(
        draw(n, K * D_HEAD, seed=1).abs(), draw(n, K * D_HEAD, seed=2).abs(), draw(n, H * D_HEAD, seed=3).abs()
    )


def dense(pattern: Tensor, scales: Scales, taps: Tensor) -> Tensor:
    """The map (P * O, P * V) as the sum that it stands for."""
    out = torch.zeros(P, H, D_HEAD, P, K, D_HEAD, dtype=torch.float64)
    first, value, output = (each.unflatten(-1, (-1, D_HEAD)) for each in (scales.first, scales.value, scales.output))  # type: ignore[union-attr]
    for head in range(H):
        kv = head // (H // K)
        for query in range(P):
            for key in range(query + 1):
                for tap in range(J):
                    source = key - (J - 1) + tap
                    if source < 0:
                        continue
                    for d in range(D_HEAD):
                        factor = pattern[head, query, key] * output[query, head, d] * value[key, kv, d]
                        out[query, head, d, source, kv, d] += factor * first[source, kv, d] * taps[kv * D_HEAD + d, tap]
    return out.reshape(P * H * D_HEAD, P * K * D_HEAD)


def test_both_directions_are_the_sum_they_stand_for() -> None:
    pattern, scales, taps = draw(H, P, P, seed=4).tril(), scales_of(P), draw(K * D_HEAD, J, seed=5)
    mixing, matrix = Mixing(pattern, K, scales, taps), dense(pattern, scales, taps)
    values, before, after = draw(P, K * D_HEAD, seed=6), draw(P, seed=7).exp(), draw(P, seed=8).exp()
    torch.testing.assert_close(mixing.forward(values).flatten(), matrix @ values.flatten())
    z = draw(2, P, H * D_HEAD, seed=9)
    expected = ((z * after[:, None]).flatten(1) @ matrix).view(2, P, -1) * before[:, None]
    torch.testing.assert_close(mixing.back(z, before, after, None), expected)


def test_prompts_side_by_side_are_each_as_if_alone() -> None:
    lengths = (P, 4)
    patterns = draw(2, H, P, P, seed=4).tril()
    taps, scales, row = draw(K * D_HEAD, J, seed=5), scales_of(P + 4), torch.tensor([*range(P), *range(P, P + 4)])
    together = Mixing(SidePatterns(patterns, row), K, scales, taps)
    values, z = draw(P + 4, K * D_HEAD, seed=6), draw(2, P, H * D_HEAD, seed=7)
    z[1, 4:] = 0
    mixed, back = together.forward(values), together.back(z, None, None, torch.tensor([0, 1]))
    start = 0
    for number, length in enumerate(lengths):
        here = slice(start, start + length)
        alone = Mixing(patterns[number, :, :length, :length], K, scales.at(here), taps)
        torch.testing.assert_close(mixed[here], alone.forward(values[here]))
        torch.testing.assert_close(
            back[number, :length], alone.back(z[number : number + 1, :length], None, None, None)[0]
        )
        start += length


def test_a_convolution_sees_what_is_before() -> None:
    values, taps = draw(P, 2), draw(2, J, seed=1)
    expected = torch.nn.functional.conv1d(values.T[None], taps[:, None], padding=J - 1, groups=2)[0, :, :P].T
    torch.testing.assert_close(convolved(values, taps), expected)


# ---- linear attention


def parts_of(name: str, **overrides: Any) -> ModelParts:
    return bind(tiny_model(name, **overrides), name)


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_next"])
def test_the_pattern_of_a_delta_net_is_its_recurrence(name: str) -> None:
    layer = parts_of(name).layers[0]
    net, hidden = layer.linear, draw(1, P, 16)
    assert net is not None
    _, held = net.run(hidden, None)
    made = net.streams(net.module, hidden)  # type: ignore[union-attr]
    taps = net.module.conv1d.weight[:, 0]
    width = made.query.shape[-1]
    query, key = (
        torch.nn.functional.silu(convolved(each, taps[at : at + width]))[0]
        .unflatten(-1, (2, -1))
        .repeat_interleave(2, 1)
        for each, at in ((made.query, 0), (made.key, width))
    )  # (P, H, e)
    query, key = (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    beta = made.beta[0].sigmoid()
    g = -net.module.A_log.exp() * torch.nn.functional.softplus(made.step[0] + net.module.dt_bias)
    state, found = (
        torch.zeros(4, query.shape[-1], P, dtype=torch.float64),
        [],
    )  # its values are unit vectors, one a position
    for at in range(P):
        state = state * g[at].exp()[:, None, None]
        value = torch.nn.functional.one_hot(torch.tensor(at), P).double().expand(4, -1)
        change = (value - torch.einsum("he,hep->hp", key[at], state)) * beta[at][:, None]
        state = state + key[at][:, :, None] * change[:, None]
        found.append(torch.einsum("he,hep->hp", query[at] * query.shape[-1] ** -0.5, state))
    torch.testing.assert_close(held.pattern[0], torch.stack(found, dim=1))


@pytest.mark.parametrize(("name", "tolerance"), [("qwen3_5_text", 2e-6), ("qwen3_next", 2e-6), ("lfm2", 1e-12)])
def test_it_gives_what_the_module_gives(name: str, tolerance: float) -> None:
    layer = parts_of(name).layers[0]
    assert layer.linear is not None
    hidden = draw(2, P, 16)
    given, held = layer.linear.run(hidden, None)
    expected = layer.attention(hidden)
    assert float((given - expected).abs().max()) <= tolerance * float(expected.abs().max())
    again, _ = layer.linear.run(hidden, held)
    torch.testing.assert_close(again, given)
    one, _ = layer.linear.run(hidden[:1], Held(held.pattern[0], held.scales.each(lambda scale: scale[0])))
    torch.testing.assert_close(one, given[:1])


# ---- what does not show what it does


OF_THEIR_OWN = ("gptj", "falcon", "bloom", "mpt", "codegen", "gpt_neo", "qwen3_next", "lfm2", "opt", "laguna")


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_the_captured_pass_is_the_models_own(name: str) -> None:
    parts = parts_of(name)
    with torch.no_grad(), implementation(parts, "eager"):
        own = parts.model(input_ids=IDS[None], use_cache=False).logits[0]
    found = logits_at(parts, capture(parts, IDS).final)
    assert float((found - own).abs().max()) <= 2e-5 * float(own.abs().max())  # their own code rounds to float32


def test_patterns_of_a_models_own_attention_are_seen_and_changed() -> None:
    parts = parts_of("gptj")
    seen = read(parts, IDS, [("attn.hook_scores", 1), ("attn.hook_pattern", 1)])
    torch.testing.assert_close(torch.softmax(seen["attn.hook_scores", 1], -1), seen["attn.hook_pattern", 1])
    kept = capture(parts, IDS).patterns[1]
    torch.testing.assert_close(seen["attn.hook_pattern", 1][0].double(), kept)
    nothing = {("attn.hook_pattern", 1): lambda _, pattern: torch.zeros_like(pattern)}
    outputs: list[Tensor] = []
    ModelRun(parts, {**nothing, ("hook_attn_out", 1): lambda _, out: outputs.append(out)})(IDS)
    assert not outputs[0].any()


@pytest.mark.parametrize(("name", "site"), [("gptj", "attn.hook_q"), ("qwen3_next", "attn.hook_scores")])
def test_a_place_that_attention_does_not_show_is_refused(name: str, site: str) -> None:
    with pytest.raises(CompatibilityError, match=rf"there is no '{site}' in layer 0 of this model: its \w+ shows only"):
        read(parts_of(name), IDS, [(site, 0)])


@pytest.mark.parametrize("name", ["gptj", "qwen3_next"])
def test_scores_that_are_not_shown_cannot_be_explained(name: str) -> None:
    parts = parts_of(name)
    with pytest.raises(CompatibilityError, match="shows only"):
        read_scores(parts, capture(parts, IDS), [0])


@pytest.mark.parametrize("name", ["gptj", "qwen3_next", "deepseek_v32"])
def test_patterns_that_cannot_be_recomputed_are_kept(name: str) -> None:
    parts = parts_of(name)
    assert len(capture(parts, IDS, keep_patterns=False).patterns) == 3
    if name != "deepseek_v32":
        with pytest.raises(UnsupportedModelError, match="cannot be recomputed"):
            capture(parts, IDS, tape=AttentionTape(recompute=True))
