"""Transcoders of some layers only: the MLPs of the others are error nodes, whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attribution.prompt import encode_prompt, linearise
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.attribution.targets import FeatureTarget
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.fingerprint import transcoder_fingerprint
from circuit_tracer.training.evaluation import EvaluationSettings, evaluate
from circuit_tracer.transcoders import TopK, TranscoderSet, load_transcoder_from_hub, save_transcoders
from tests.support.evaluation_cases import perfect_pair, sequences
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, assert_same_graph

CASES = {
    "middle": ((1,), "qwen3", {}),
    "a gap": ((0, 2), "gemma2", {"input_hook": "ln2.hook_normalized"}),
    "the last, skip": ((2,), "gpt2", {"skip": True, "input_hook": "mlp.hook_in"}),
    "the first, topk": (
        (0,),
        "gpt_neox",
        {"activation": "topk", "input_hook": "mlp.hook_in", "output_hook": "mlp.hook_out"},
    ),
    "not the first": ((1, 2), "llama", {"activation": "jump_relu", "skip": True}),
}


def some(layers: tuple[int, ...], **how: Any) -> TranscoderSet:
    whole = tiny_transcoder("plt", **how)
    return TranscoderSet({layer: whole[layer] for layer in layers}, whole.feature_input_hook, whole.feature_output_hook)


def loaded(layers: tuple[int, ...], name: str = "llama", **how: Any) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(name), some(layers, **how), None, name)


@pytest.mark.few
@pytest.mark.parametrize(("layers", "name", "how"), CASES.values(), ids=CASES)
def test_graphs_of_some_layers_equal_the_reference(layers, name, how):
    model = loaded(layers, name, **how)
    graph = attribute(IDS, model, max_n_logits=3)
    assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3))
    assert set(graph.active_features[:, 0].tolist()) <= set(layers)
    assert [float(nmse) for layer, nmse in enumerate(graph.reconstruction.nmse) if layer not in layers] == [1.0] * (
        3 - len(layers)
    )


@pytest.mark.parametrize("keep_rows", [True, False], ids=["kept", "read again"])
def test_the_error_of_a_layer_without_transcoder_is_its_mlp_output(keep_rows):
    model = loaded((1,))
    prompt = linearise(encode_prompt(model.parts, model.transcoders, IDS, [0]), model.transcoders, keep_rows)
    for layer in (0, 2):
        torch.testing.assert_close(prompt.error[layer][1:], prompt.network.transcoder_output(layer)[1:], rtol=0, atol=0)


def test_the_same_as_a_dead_transcoder_in_the_other_layers():
    whole = tiny_transcoder("plt")
    for layer in (0, 2):
        for name in ("W_enc", "W_dec", "b_dec"):
            setattr(whole[layer], name, torch.zeros_like(getattr(whole[layer], name)))
        whole[layer].b_enc = -torch.ones_like(whole[layer].b_enc)
    dead = attribute(IDS, ReplacementModel.from_model(tiny_model("llama"), whole, None, "llama"))
    torch.testing.assert_close(attribute(IDS, loaded((1,))).adjacency_matrix, dead.adjacency_matrix)


@pytest.mark.parametrize("constrained", [None, range(3)], ids=["live", "edges"])
def test_interventions_reach_layers_without_transcoders(constrained):
    model = loaded((0, 2))
    graph = attribute(IDS, model, max_n_logits=3)
    rows = graph.active_features[graph.selected_features]
    options = {"constrained_layers": constrained, "apply_activation_function": constrained is None}
    with model.zero_softcap():
        clean_logits, clean = model.feature_intervention(IDS, [], **options)
        logits, changed = model.feature_intervention(
            IDS, [(*rows[0].tolist(), 2 * float(graph.activation_values[graph.selected_features[0]]))], **options
        )
    assert clean.shape == (3, len(IDS), 20)
    assert not clean[1].any()
    moved = (changed - clean)[tuple(rows.T)]
    if constrained is not None:
        column = graph.adjacency_matrix[:, 0].double()
        torch.testing.assert_close(moved, column[: len(rows)], atol=1e-7, rtol=1e-6)
        change = (logits - clean_logits)[0, -1].double()
        torch.testing.assert_close((change - change.mean())[graph.logit_token_ids], column[-3:], atol=1e-7, rtol=1e-6)
    else:
        assert moved.abs().max() > 0


def test_what_asks_for_features_of_such_a_layer_is_told_which_have_some():
    model = loaded((0, 2))
    said = "of 3 layers, 0 and 2 have transcoders"
    with pytest.raises(InputError, match=said):
        model.transcoders.encoder_rows(1, torch.tensor([0]))
    with pytest.raises(InputError, match=said):
        attribute(IDS, model, attribution_targets=[FeatureTarget(1, 3, 0)])
    with pytest.raises(InputError, match=said):
        model.feature_intervention(IDS, [(1, 2, 3, 4.0)])
    assert "in layers 0, 2" in repr(model)


def test_a_model_whose_transcoders_are_of_some_layers_says_so():
    with pytest.warns(
        UserWarning, match="of 3 layers, 0 and 2 have transcoders: the MLPs of the others are error nodes"
    ):
        loaded((0, 2))


def test_layers_that_the_model_does_not_have_are_refused():
    far = TranscoderSet({1: tiny_transcoder("plt")[1], 3: tiny_transcoder("plt")[0]}, "hook_resid_mid", "hook_mlp_out")
    with pytest.raises(CompatibilityError, match="has a layer 3, model llama has 3 layers"):
        ReplacementModel.from_model(tiny_model("llama"), far, None, "llama")


def test_files_of_some_layers_come_back_as_they_were(tmp_path):
    original = some((1, 2), activation="topk", skip=True)
    save_transcoders(original, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "layer_1.safetensors",
        "layer_2.safetensors",
    ]
    read, _ = load_transcoder_from_hub(tmp_path, dtype=None)
    assert (read.layers, read.n_layers) == ((1, 2), 3)
    assert isinstance(read.activation(1), TopK)
    assert transcoder_fingerprint(read) == transcoder_fingerprint(original)
    x = torch.rand(3, 4, 16, dtype=torch.float64)
    torch.testing.assert_close(read(x), original(x))
    assert not read(x)[0].any()
    torch.testing.assert_close(read.encode_sparse(x)[0].to_dense(), original.encode_sparse(x)[0].to_dense())


def test_replacing_some_mlps_leaves_the_others_as_they_are():
    parts, whole = perfect_pair("plt")
    hooks = whole.feature_input_hook, whole.feature_output_hook
    settings = EvaluationSettings(tokens=100, replacement_tokens=100, prompts=(), random_baseline=False)
    found = evaluate(parts, None, TranscoderSet({2: whole[2]}, *hooks), sequences(4), settings)
    result = found.results["dictionary"]
    assert result.replacement.kl < 1e-9
    assert result.reconstruction.nmse[2] < 1e-9
    assert [nmse != nmse for nmse in result.reconstruction.nmse] == [True, True, False]
    assert result.reconstruction.mean_nmse < 1e-9
    assert "layers 2 of 3" in result.what
    # ablation, too, is that of the MLPs that are replaced
    every = evaluate(parts, None, whole, sequences(4), settings)
    assert found.ablations["zero"].kl < every.ablations["zero"].kl
