"""Features of autoencoders changed: the stream at their place gets the difference of what is decoded, and all else reacts."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer import attribute
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.interventions import (
    CleanRun,
    Sampling,
    Semantics,
    ablate,
    add,
    apply_each,
    apply_edits,
    scale,
    set_to,
    steer,
)
from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.models.run import ModelRun
from circuit_tracer.transcoders import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.transcoders.layer_weights import LayerWeights
from tests.support.autoencoders import PLACES, autoencoded, naive_change
from tests.support.tiny import Letters

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
LIVE = Semantics("direct", freeze_attention=False)


def active_feature(model, layer=2):
    clean = CleanRun(model, IDS)
    here = clean.active.of_layer(layer)
    return clean, int(clean.active.index[here][0]), int(clean.active.position[here][0])


NORMS_BEHIND = ("attn.hook_z", "attn.hook_out", "mlp.hook_out", "hook_mlp_out")


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "place"),
    [
        *(("llama", place) for place in PLACES),
        *(("gemma2", place) for place in NORMS_BEHIND),
        ("gpt_neox", "hook_resid_mid"),  # attention and MLP side by side
        ("granite", "hook_attn_out"),  # multiplied on its way to the stream
    ],
)
def test_an_ablated_feature_is_its_decoder_row_taken_from_its_place(architecture, place):
    model = autoencoded(architecture, place)
    clean, index, position = active_feature(model)
    outcome = apply_edits(model, IDS, ablate((2, position, index)), LIVE)
    expected = naive_change(model, IDS, 2, index, lambda a: 0.0, [position])
    torch.testing.assert_close(outcome.final, expected, rtol=1e-12, atol=1e-12)
    assert (outcome.final - clean.final).abs().max() > 1e-6


@pytest.mark.few
@pytest.mark.parametrize("place", PLACES)
def test_a_feature_at_its_own_value_changes_nothing(place):
    model = autoencoded("llama", place)
    clean, index, position = active_feature(model)
    value = float(clean.activations(2, torch.tensor([position]), torch.tensor([index])))
    assert torch.equal(apply_edits(model, IDS, set_to((2, position, index), value), LIVE).final, clean.final)


@pytest.mark.parametrize("activation", ["relu", "topk_nonnegative"])
def test_edits_together_at_positions_and_in_batches(activation):
    model = autoencoded("llama", "hook_resid_post", activation=activation)
    single = [[add((0, 3), 0.7, at=[2, 4])], [set_to((2, 5), 1.5, at=slice(1, None))], [ablate((2, 1), at="all")]]
    for outcome, (layer, index, value_of, at) in zip(
        apply_each(model, IDS, single, LIVE, batch_size=2),
        [
            (0, 3, lambda a: a + 0.7, [2, 4]),
            (2, 5, lambda a: 1.5, [1, 2, 3, 4, 5]),
            (2, 1, lambda a: 0.0, [1, 2, 3, 4, 5]),
        ],
        strict=True,
    ):
        expected = naive_change(model, IDS, layer, index, value_of, at)
        torch.testing.assert_close(outcome.final, expected, rtol=1e-11, atol=1e-11)


def test_circuit_tracers_way_and_what_features_do_then():
    """Logits as by hand; activations behind the change are those of the changed pass."""
    model = autoencoded("llama", "hook_resid_mid")
    logits, acts = model.feature_intervention(IDS, [(0, 3, 4, 2.5)], freeze_attention=False)
    expected = naive_change(model, IDS, 0, 4, lambda a: 2.5, [3])
    torch.testing.assert_close(logits[0], expected @ model.unembed_weight.T, rtol=1e-11, atol=1e-11)
    assert acts.shape == (3, len(IDS), 11)
    assert not acts[1].any()  # a layer without an autoencoder
    outcome = apply_edits(model, IDS, set_to((0, 3, 4), 2.5), LIVE)
    moved = outcome.features.largest(1)[0][0]
    found = outcome.features.of(*moved)
    torch.testing.assert_close(outcome.features.after[found], acts[moved.layer, moved.position, moved.feature_idx])


def test_what_layers_add_can_be_held():
    """Constrained: the heads' outputs of all other layers stay, so that the effect is the direct one."""
    model = autoencoded("llama", "attn.hook_z")
    clean, index, position = active_feature(model, layer=0)
    kept = {layer: clean.network.transcoder_input(layer) for layer in range(3)}
    single = model.transcoders[0]
    act = clean.activations(0, torch.tensor([position]), torch.tensor([index]))

    def held(layer, z_BPD):
        new = kept[layer][None].clone()
        if layer == 0:
            new[:, position] -= act * single.W_dec[index]
        return new

    outcome = apply_edits(model, IDS, ablate((0, position, index)), Semantics("constrained", freeze_norms=False))
    torch.testing.assert_close(
        outcome.final, ModelRun(model.parts, {"attn.hook_z": held})(IDS).final[0], rtol=1e-11, atol=1e-11
    )


def test_the_stream_cannot_be_held():
    model = autoencoded("llama", "hook_resid_post")
    with pytest.raises(InputError, match=r"residual stream \(hook_resid_post\).*direct"):
        apply_edits(model, IDS, ablate((2, 3, 1)), "constrained")


def test_nothing_is_traced_with_autoencoders():
    model = autoencoded("llama", "hook_resid_post")
    with pytest.raises(CompatibilityError, match=r"sparse autoencoder at hook_resid_post.*--target sae:"):
        attribute(IDS, model)


@pytest.mark.parametrize("cache", [True, False])
def test_steering_is_the_naive_hook(cache):
    """A feature times ten on all tokens but the first, of the prompt and generated; against a pass over all each time."""
    model = autoencoded("llama", "hook_resid_post")
    model.tokenizer = Letters()
    _, index, _ = active_feature(model)
    result = steer(
        model,
        IDS,
        scale((2, index), 10.0),
        Sampling(5, stop_at_eos=False),
        cache=cache,
        compare=False,
        keep_logits=True,
    )
    clean = CleanRun(model, IDS)
    values = 10 * clean.activations(2, torch.arange(6), torch.full((6,), index))
    ids = IDS
    for step, chosen in enumerate(result.steered.ids.tolist()):

        def value_of(
            a, step=step
        ):  # on the prompt relative to the clean prompt, behind it to what the feature would be
            return 10 * a

        final = naive_change(model, ids, 2, index, value_of, list(range(1, len(ids))))
        logits = final[-1] @ model.unembed_weight.T
        torch.testing.assert_close(result.steered.logits[step], logits, rtol=1e-10, atol=1e-10)
        ids = torch.cat([ids, torch.tensor([chosen])])
    assert values[1:].any()


def test_another_models_autoencoders_are_refused():
    model = autoencoded("llama", "attn.hook_z")
    from circuit_tracer import ReplacementModel
    from tests.support.autoencoders import random_autoencoders

    with pytest.raises(CompatibilityError, match=r"d_model 5, model llama has 16"):
        ReplacementModel.from_model(model.hf_model, random_autoencoders(5, "hook_resid_post"), None, "llama")
    with pytest.raises(CompatibilityError, match="has a layer 3, model llama has 3 layers"):
        ReplacementModel.from_model(
            model.hf_model, random_autoencoders(16, "hook_resid_post", layers=(1, 3)), None, "llama"
        )


@pytest.mark.parametrize("k", [None, 3])
def test_a_routed_feature_has_the_value_that_its_router_gives_it(k):
    torch.manual_seed(0)
    x, encoder, decoder = (torch.randn(n, 6, dtype=torch.float64) for n in (5, 8, 8))
    bias, router = torch.randn(8, dtype=torch.float64), (torch.randn(2, 6).double(), torch.randn(2).double())
    weights = LayerWeights(
        "made", encoder, decoder, bias, x.new_zeros(6), k=k, nonnegative=k is not None, router=router
    )
    single = SingleLayerTranscoder.from_weights(weights, 0, dtype=torch.float64)
    share, expert = torch.softmax(x @ router[0].T + router[1], -1).max(-1)
    acts = torch.relu(x @ encoder.T + bias) * (torch.arange(8)[None] // 4 == expert[:, None])
    if k is not None:
        acts = torch.zeros_like(acts).scatter(1, (chosen := acts.topk(k)).indices, chosen.values)
    everywhere = torch.cartesian_prod(torch.arange(5), torch.arange(8)).T
    found = activations_of(TranscoderSet({0: single}, *["hook_resid_post"] * 2), 0, x, *everywhere)
    torch.testing.assert_close(found.view(5, 8), acts * share[:, None])
