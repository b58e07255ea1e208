"""Every site of the table on every architecture: what is read is what the layer's identities say, what is written counts, and
the model is left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.capture import capture
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.run import ModelRun, Place, Stop, Visit, fast_attention, implementation, in_rows, read
from circuit_tracer.models.sites import INPUT_HOOKS, OUTPUT_HOOKS, SITES, check_hooks, site_named, site_of
from tests.support.left_behind import left_behind
from tests.support.tiny import ARCHITECTURES, tiny_model

IDS = torch.tensor([3, 17, 5, 17, 40, 8, 0, 29])  # longer than the sliding windows
BATCH = torch.stack([IDS, IDS.flip(0), IDS.roll(3)])
LAYER = 1
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def parts_of(name: str, dtype: torch.dtype = torch.float64) -> ModelParts:
    return bind(tiny_model(name, dtype), name)


def there(parts: ModelParts) -> list[str]:
    return [site.name for site in SITES.values() if site.missing(parts) is None]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each_architecture
def test_what_is_read_obeys_the_identities_of_a_layer(name: str) -> None:
    parts = parts_of(name)
    seen = {site: x for (site, _), x in read(parts, BATCH, [(site, LAYER) for site in there(parts)]).items()}
    sizes = {"B": 3, "P": 8, "D": parts.config.d_model, "H": parts.config.n_heads}
    sizes |= {"K": parts.config.n_key_value_heads, "d": parts.config.d_head}
    sizes["H*d"] = sizes["H"] * sizes["d"]
    for site, x in seen.items():
        letters = SITES[site].shape.split()
        assert list(x.shape) == [sizes.get(letter, size) for letter, size in zip(letters, x.shape, strict=True)], site
    attn_out, mlp_out = seen["hook_attn_out"], seen["hook_mlp_out"]
    same(seen["hook_resid_post"], seen["hook_resid_pre"] + attn_out + mlp_out)
    same(seen["hook_resid_mid"], seen["hook_resid_pre"] + (0 if parts.parallel else attn_out))
    groups = sizes["H"] // sizes["K"]
    keys, values = (seen[f"attn.hook_{name}"].repeat_interleave(groups, dim=1) for name in ("k", "v"))
    pattern = seen["attn.hook_pattern"]
    same(seen["attn.hook_z"], (pattern @ values).transpose(1, 2).flatten(2))
    if name not in ("gpt_oss", "gemma2"):  # sinks and softcaps
        same(torch.softmax(seen["attn.hook_scores"], -1), pattern)
        lower = torch.ones(8, 8).tril(-1).bool()
        ratio = (seen["attn.hook_q"] @ keys.transpose(-1, -2))[:, :, lower] / seen["attn.hook_scores"][:, :, lower]
        finite = ratio.abs() > 1e-12  # beyond a window the mask is far larger than the score
        same(ratio[finite], ratio[finite].median().expand_as(ratio[finite]))
    layer = parts.layers[LAYER]
    for site, norm in (("ln1.hook_normalized", layer.attention_norm), ("ln2.hook_normalized", layer.mlp_norm)):
        if norm is not None:
            stream = seen["hook_resid_pre" if site.startswith("ln1") else "hook_resid_mid"].flatten(0, 1)
            scaled = norm.parameters.freeze(norm.parameters.inverse_sigma(stream))
            same(seen[site].flatten(0, 1), scaled.normalise(stream))
    if layer.mlp_norm is not None:
        frozen = layer.mlp_norm.parameters.freeze(torch.ones(24, dtype=torch.float64))
        same(seen["mlp.hook_in"].flatten(0, 1), frozen.amplify(seen["ln2.hook_normalized"].flatten(0, 1)))
    post = layer.mlp_post_norm
    if post is None:
        same(seen["mlp.hook_out"], mlp_out)
    else:
        raw = seen["mlp.hook_out"].flatten(0, 1)
        same(post.parameters.freeze(post.parameters.inverse_sigma(raw)).forward(raw), mlp_out.flatten(0, 1))


@pytest.mark.few
@each_architecture
def test_a_batch_is_its_sequences_one_by_one(name: str) -> None:
    parts = parts_of(name)
    places = [(site, layer) for site in there(parts) for layer in range(3)]
    together = read(parts, BATCH, places)
    for row, ids in enumerate(BATCH):
        for place, alone in read(parts, ids, places).items():
            same(together[place][row], alone[0])
    same(ModelRun(parts)(IDS, copies=2).final, ModelRun(parts)(IDS).final.expand(2, -1, -1))


@pytest.mark.few
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_written_counts_and_the_same_written_back_changes_nothing(name: str) -> None:
    parts = parts_of(name)
    own = ModelRun(parts)(IDS).final
    captured = capture(parts, IDS)
    for site in there(parts):
        back: dict[tuple[str, int], Visit] = {(site, LAYER): lambda _, x: x.clone()}
        assert torch.equal(ModelRun(parts, back)(IDS).final, own), site
        noise: dict[tuple[str, int], Visit] = {(site, LAYER): lambda _, x: x + torch.randn(x.shape).to(x)}
        assert not torch.allclose(ModelRun(parts, noise)(IDS).final, own), site
    held = ModelRun(parts, norms=captured.scales, tape=captured.replayed())(BATCH[:1]).final
    same(held, own)


@pytest.mark.few
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_small_changes(name: str) -> None:
    parts = parts_of(name)
    direction = torch.randn(parts.config.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(site: str, change: Tensor, gradients: bool = False) -> Tensor:
        add: dict[tuple[str, int], Visit] = {(site, LAYER): lambda _, x: x + change}
        return (ModelRun(parts, add)(IDS, gradients=gradients).final[0, -1] * direction).sum()

    for site in there(parts):
        shape = read(parts, IDS, [(site, LAYER)])[site, LAYER].shape
        way = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(value(site, step * way, gradients=True), step)
        expected = (value(site, 1e-5 * way) - value(site, -1e-5 * way)) / 2e-5
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_recorded_and_with_them_no_parameter_is() -> None:
    parts = parts_of("llama")
    assert not ModelRun(parts)(IDS).final.requires_grad
    parts.model.requires_grad_(True)
    assert not ModelRun(parts)(IDS).final.requires_grad


# ---- the model is left as it was found


def state(parts: ModelParts) -> tuple[object, ...]:
    config = parts.model.config
    dtypes = {parameter.dtype for parameter in parts.model.parameters()}
    return (
        config._attn_implementation,
        getattr(config, "_experts_implementation", None),
        left_behind(parts.model),
        dtypes,
    )


def broken(layer: int, activation: Tensor) -> Tensor:
    raise ValueError("in the middle of a pass")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_the_model_is_left_as_it_was_found(name: str, attention: str) -> None:
    parts = parts_of(name)
    parts.model.set_attn_implementation(attention)
    handle = parts.layers[0].mlp.register_forward_hook(lambda *_: None)  # the user's own
    before = state(parts)
    capture(parts, IDS)
    assert state(parts) == before
    for site in there(parts):
        with pytest.raises(ValueError, match="in the middle"):
            ModelRun(parts, {(site, LAYER): broken})(IDS)
        assert state(parts) == before
    with pytest.raises(ValueError, match="by the caller"), ModelRun(parts).active():
        raise ValueError("by the caller")
    with pytest.raises(ValueError, match="by the caller"), fast_attention(parts):
        raise ValueError("by the caller")
    assert state(parts) == before
    handle.remove()


@pytest.mark.parametrize("first", ["theirs-first", "ours-first"])
def test_hooks_of_the_user_see_what_is_read_and_written(first: str) -> None:
    parts = parts_of("llama")
    seen: dict[str, Any] = {}
    module = parts.layers[LAYER].mlp

    def enters(own: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen["enters"] = (own, 3 * args[0])
        return (3 * args[0],)

    def leaves(own: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen["leaves"] = (own, output)

    def register() -> None:
        module.register_forward_pre_hook(enters)
        module.register_forward_hook(leaves, with_kwargs=True)

    def written(layer: int, x: Tensor) -> Tensor:
        return x.roll(1, 0)

    visits: dict[Place, Visit] = {
        ("mlp.hook_in", LAYER): lambda _, x: seen.update({"read": x}),
        ("mlp.hook_out", LAYER): written,
    }
    if first == "theirs-first":
        register()
    with ModelRun(parts, visits, norms=None).active():
        if first == "ours-first":
            register()
        parts.base(input_ids=BATCH)
    assert seen["enters"][0] is seen["leaves"][0] is module
    same(seen["read"], seen["enters"][1])
    same(seen["leaves"][1], written(LAYER, module.forward(seen["read"])))
    assert len(left_behind(parts.model)) == 2  # theirs


def test_experts_are_given_back() -> None:
    parts = parts_of("gpt_oss")
    parts.model.set_experts_implementation("grouped_mm")
    before = state(parts)
    assert ModelRun(parts)(IDS).final.isfinite().all()  # torch's grouped products have no float64
    with pytest.raises(ValueError, match="in the middle"):
        ModelRun(parts, {("hook_resid_pre", 2): broken})(IDS)
    assert state(parts) == before


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_neox", "gpt_oss"])
def test_the_models_own_answers_are_the_same_before_and_after(name: str) -> None:
    parts = parts_of(name)
    with torch.no_grad():
        before = parts.model(input_ids=BATCH).logits
        capture(parts, IDS)
        assert torch.equal(parts.model(input_ids=BATCH).logits, before)


def test_a_run_inside_a_run_gives_back_what_it_found() -> None:
    parts = parts_of("llama")
    with implementation(parts, "eager"):
        before = state(parts)
        capture(parts, IDS)
        assert state(parts) == before


# ---- stopping, precision, refusals


def test_reading_stops_behind_the_last_place() -> None:
    parts = parts_of("llama")
    ran: list[int] = []
    visits: dict[str, Visit] = {"hook_resid_pre": lambda layer, _: ran.append(layer)}
    with ModelRun(parts, visits, norms=None).active():
        found = read(parts, IDS, [("hook_resid_mid", 0), ("attn.hook_pattern", 1)])
    assert set(found) == {("hook_resid_mid", 0), ("attn.hook_pattern", 1)}
    assert ran == [0, 1]
    assert read(parts, IDS, []) == {}


def test_a_visit_may_stop_the_pass() -> None:
    def stop(layer: int, activation: Tensor) -> None:
        raise Stop

    output = ModelRun(parts_of("llama"), {("hook_resid_mid", 1): stop})(IDS)
    assert output.final.numel() == 0


def test_behind_a_norm_bfloat16_models_are_read_in_float32() -> None:
    parts = parts_of("gemma3", torch.bfloat16)
    exact = read(parts, IDS, [("mlp.hook_in", 1), ("ln2.hook_normalized", 1), ("hook_resid_mid", 1)])
    assert [exact[site, 1].dtype for site in ("mlp.hook_in", "ln2.hook_normalized")] == [torch.float32] * 2
    assert exact["hook_resid_mid", 1].dtype is torch.bfloat16
    plain = read(parts, IDS, [("mlp.hook_in", 1), ("ln2.hook_normalized", 1)], norms=None)
    assert {x.dtype for x in plain.values()} == {torch.bfloat16}
    rows: list[Tensor] = []
    keep: Callable[[int, Tensor], None] = lambda _, x: rows.append(x)  # noqa: E731
    ModelRun(parts, {("hook_mlp_out", 1): in_rows(parts, keep)})(BATCH)
    assert rows[0].shape == (24, parts.config.d_model)
    assert rows[0].dtype is torch.float32


def test_names_are_those_of_files_and_their_short_forms() -> None:
    assert site_named("resid_pre") is SITES["hook_resid_pre"]
    assert site_named("attn.z") is SITES["attn.hook_z"]
    assert site_named("mlp.hook_in") is SITES["mlp.hook_in"]
    assert INPUT_HOOKS == ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
    assert OUTPUT_HOOKS == ("hook_mlp_out", "mlp.hook_out")
    with pytest.raises(InputError, match=r"site 'resid_middle' is unknown; known are hook_resid_pre"):
        site_named("resid_middle")


def test_a_place_that_an_architecture_lacks_is_refused_with_its_reason() -> None:
    parts = parts_of("olmo2")
    with pytest.raises(
        CompatibilityError, match=r"ln1.hook_normalized.*olmo2 has no norm before its attention; read hook"
    ):
        site_of(parts, "ln1.normalized")
    with pytest.raises(CompatibilityError, match="olmo2 has no norm before its MLP"):
        ModelRun(parts, {"ln2.hook_normalized": lambda *_: None})
    with pytest.raises(CompatibilityError, match=r"transcoder reads 'ln2.hook_normalized', but olmo2 has no norm"):
        check_hooks(parts, "ln2.hook_normalized", "hook_mlp_out")


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(InputError, match=rf"hook_resid_mid of layer {layer}: the model has layers 0 to 2"):
        read(parts_of("llama"), IDS, [("resid_mid", layer)])


def test_a_place_within_attention_is_visited_whatever_the_model_is_set_to() -> None:
    parts = parts_of("llama")
    parts.model.set_attn_implementation("sdpa")
    place = ("attn.hook_pattern", 1)
    same(read(parts, IDS, [place], own_attention=False)[place], read(parts, IDS, [place])[place])


def test_patterns_that_are_made_tile_by_tile_cannot_be_visited() -> None:
    parts = parts_of("llama")
    run = ModelRun(parts, {("attn.hook_pattern", 0): broken}, tape=AttentionTape(recompute=True))
    with pytest.raises(InputError, match="does not exist in a pass that makes patterns tile by tile"):
        run(IDS)
