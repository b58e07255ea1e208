"""What a dictionary is and where it stands is what its files say; made up or contradicted it is an error, or loud."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, NumericalError
from circuit_tracer.models import sites
from circuit_tracer.models.sites import INPUT_HOOKS, OUTPUT_HOOKS
from circuit_tracer.transcoders import (
    JumpReLU,
    TopK,
    load_clt,
    load_transcoder,
    load_transcoder_from_hub,
    load_transcoder_set,
    places,
    save_transcoders,
)
from circuit_tracer.transcoders.places import READABLE, WRITABLE, place_of
from tests.support.dictionaries import random_clt, random_set, uniform
from tests.support.transcoder_layouts import HOOKS, LAYOUTS, D, F, K, L, read_tensors, write_tensors


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set"


def written(name: str, folder):
    LAYOUTS[name].write(folder)
    return LAYOUTS[name]


def test_the_places_of_files_are_those_of_models():
    assert (set(INPUT_HOOKS), set(OUTPUT_HOOKS)) == (READABLE, WRITABLE)
    assert set(sites.AUTOENCODED) == set(places.AUTOENCODED)


@pytest.mark.parametrize(
    ("said", "layer", "hook"),
    [
        ("blocks.7.ln2.hook_normalized", 7, "ln2.hook_normalized"),
        ("blocks.11.hook_mlp_out", 11, "hook_mlp_out"),
        ("model.layers.3.pre_feedforward_layernorm.output", 3, "mlp.hook_in"),
        ("model.language_model.layers.12.post_feedforward_layernorm.output", 12, "hook_mlp_out"),
        ("transformer.h.2.mlp.output", 2, "mlp.hook_out"),
        ("gpt_neox.layers.5.mlp.input", 5, "mlp.hook_in"),
        ("hook_resid_mid", None, "hook_resid_mid"),
        ("model.layers.3.post_attention_layernorm.output", 3, None),
    ],
)
def test_places_in_the_words_of_other_libraries(said, layer, hook):
    place = place_of(said, "file")
    assert (place.layer, place.hook) == (layer, hook)


@pytest.mark.parametrize(
    ("type_", "what"),
    [("sae", "autoencoder"), ("crosscoder", "crosscoder"), ("lorsa", "no kind that is known"), ("clt", "cross-layer")],
)
def test_only_transcoders_of_gemma_scope_2_are_transcoders(folder, type_, what):
    layout = written("gemma-scope-2-plt", folder)
    layout.add_key(folder, "type", type_)
    with pytest.raises(FileFormatError, match=f"type = '{type_}'.*{what}"):
        load_transcoder_from_hub(folder, **HOOKS)


def test_a_crosscoder_is_no_cross_layer_transcoder(folder):
    layout = written("gemma-scope-2-clt", folder)
    layout.add_key(folder, "type", "crosscoder")
    with pytest.raises(FileFormatError, match="crosscoder of several layers"):
        load_clt(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"hf_hook_point_in": "model.layers.0.output"},
        {"hf_hook_point_in": "model.layers.0.self_attn.o_proj.input"},
        {"hf_hook_point_in": "model.layers.0.post_feedforward_layernorm.output"},
        {"hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output"},
        {"hf_hook_point_in": ["model.layers.0.output"]},
    ],
    ids=str,
)
def test_places_that_no_mlp_has_are_refused_even_without_a_type(folder, said):
    layout = written("gemma-scope-2-plt", folder)
    for key, value in ({"type": None} | said).items():
        layout.add_key(folder, key, value)
    with pytest.raises(FileFormatError):
        load_transcoder_from_hub(folder, **HOOKS)


@pytest.mark.parametrize(
    "architecture",
    [
        "standard",
        "gated",
        "jumprelu",
        "topk",
        "batchtopk",
        "temporal",
        "matching_pursuit",
        "matryoshka_batchtopk",
        None,
        3,
    ],
)
def test_autoencoders_of_saelens_are_refused(folder, architecture):
    layout = written("saelens", folder)
    layout.add_key(folder, "architecture", architecture)
    said = {"temporal": "a temporal autoencoder", "matching_pursuit": "by matching pursuit", None: "is not read. Known are",
            3: "is not read. Known are"}.get(architecture, "it stands at blocks|does not go with|needs a whole k")  # fmt: skip
    with pytest.raises(FileFormatError, match=said):
        load_transcoder_from_hub(folder)


def test_topk_named_in_cfg_json_is_used(folder):
    layout = written("saelens", folder)
    layout.add_key(folder, "activation_fn", "topk")
    with pytest.raises(FileFormatError, match="'topk' with k None"):
        load_transcoder_from_hub(folder)
    layout.add_key(folder, "activation_fn_kwargs", {"k": K})
    function = load_transcoder_from_hub(folder)[0].activation(0)
    assert isinstance(function, TopK)
    assert (function.k, function.nonnegative) == (K, True)


@pytest.mark.parametrize("name", ["tanh-relu", "topk-absolute", "jumprelu", "", None, 0])
def test_other_activation_functions_in_cfg_json_are_refused(folder, name):
    layout = written("saelens", folder)
    layout.add_key(folder, "activation_fn", name)
    if name is None:  # null says nothing
        load_transcoder_from_hub(folder)
        return
    with pytest.raises(FileFormatError, match="activation_fn"):
        load_transcoder_from_hub(folder)


def test_hooks_come_from_the_files(folder):
    for name in ("gemma-scope-2-plt", "sparsify", "saelens", "saelens-old-topk"):
        written(name, folder / name)
        loaded, config = load_transcoder_from_hub(folder / name)
        writes = "hook_mlp_out" if name == "gemma-scope-2-plt" else "mlp.hook_out"
        assert (loaded.feature_input_hook, loaded.feature_output_hook) == ("mlp.hook_in", writes)
        assert config["feature_input_hook"] == "mlp.hook_in"
        assert config["model_kind"] == "transcoder_set"


def test_a_contradiction_about_hooks_names_both_sides(folder):
    written("saelens", folder)
    other = {"feature_input_hook": "hook_resid_mid"}
    with pytest.raises(FileFormatError, match=r"'hook_resid_mid', but .*sae_weights.safetensors says 'mlp.hook_in'"):
        load_transcoder_from_hub(folder, **other)
    (folder / "config.yaml").write_text(yaml.safe_dump(HOOKS | other))
    with pytest.raises(FileFormatError, match=r"config.yaml says .* 'hook_resid_mid', but .* says 'mlp.hook_in'"):
        load_transcoder_from_hub(folder)
    with pytest.raises(FileFormatError, match=r"config.yaml says .* 'hook_resid_mid', the argument says 'mlp.hook_in'"):
        load_transcoder_from_hub(folder, feature_input_hook="mlp.hook_in")


def test_layers_in_another_order_are_noticed(folder):
    written("saelens-old-topk", folder)
    (folder / "layer_0").rename(folder / "x")
    (folder / "layer_1").rename(folder / "layer_0")
    (folder / "x").rename(folder / "layer_1")
    with pytest.raises(FileFormatError, match="stands at layer 0, but says that it belongs to layer 1"):
        load_transcoder_from_hub(folder)
    with pytest.raises(FileFormatError, match="stands at layer 3, but says that it belongs to layer 1"):
        load_transcoder(folder / "layer_0" / "sae_weights.safetensors", 3)


def test_layers_at_different_places_are_an_error(folder):
    layout = written("gemma-scope-2-plt", folder)
    path = layout.files(folder)[1].parent / "config.json"
    path.write_text(path.read_text().replace("pre_feedforward_layernorm.output", "pre_feedforward_layernorm.input"))
    with pytest.raises(FileFormatError, match="layers disagree on their places"):
        load_transcoder_from_hub(folder)


def test_files_that_do_not_say_what_they_are_are_taken_for_transcoders_with_a_warning(folder):
    written("gemma-scope-1", folder)
    with pytest.warns(UserWarning, match="autoencoders have files that look the same"):
        loaded, _ = load_transcoder_from_hub(folder)
    assert loaded.feature_input_hook == "ln2.hook_normalized"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_transcoder_from_hub(folder, **HOOKS)[0].feature_input_hook == "mlp.hook_in"


def test_unknown_hooks_are_refused_with_those_that_are_known(folder):
    written("native-plt", folder)
    with pytest.raises(InputError, match=r"'hook_resid_post' .* is unknown; known are hook_mlp_out, mlp.hook_out"):
        load_transcoder_from_hub(folder, feature_input_hook="mlp.hook_in", feature_output_hook="hook_resid_post")


def test_a_config_beside_named_files_counts_too(tmp_path):
    save_transcoders(random_set("topk", k=K), tmp_path)
    for path in tmp_path.glob("*.safetensors"):  # as circuit-tracer reads them, without k
        save_file({"W_enc": uniform(F, D), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}, path)
    paths = {layer: tmp_path / f"layer_{layer}.safetensors" for layer in range(3)}
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    for function in (
        load_transcoder(paths[1], 1).activation_function,
        load_transcoder_set(paths, None, **hooks).activation(0),
    ):
        assert isinstance(function, TopK)
        assert function.k == K
    with pytest.raises(FileFormatError, match="activation = 'topk', the argument says 'relu'"):
        load_transcoder(paths[1], 1, "relu")


def test_a_clt_stands_where_its_config_says(tmp_path):
    clt = random_clt()
    clt.feature_input_hook = "mlp.hook_in"
    save_transcoders(clt, tmp_path)
    assert load_clt(tmp_path).feature_input_hook == "mlp.hook_in"
    (tmp_path / "config.yaml").unlink()
    with pytest.warns(UserWarning, match="hook_resid_mid.*circuit-tracer's defaults"):
        assert load_clt(tmp_path).feature_input_hook == "hook_resid_mid"


def test_a_decoder_that_writes_backwards_is_noticed_wherever_it_does(folder):
    layout = written("gemma-scope-2-clt", folder)
    path = layout.files(folder)[1]
    tensors = read_tensors(path)
    tensors["w_dec"][F - 1, 0, D - 1] = 1e-3
    write_tensors(path, tensors)
    with pytest.raises(FileFormatError, match="writes to earlier layers"):
        load_transcoder_from_hub(folder, **HOOKS)


def test_npz_members_and_joined_files_are_read_whole(tmp_path):
    LAYOUTS["gemma-scope-1"].write(tmp_path / "npz")
    path = tmp_path / "npz" / "layer_1.npz"
    np.savez(path, **dict(np.load(path)), note=np.ones(1))
    with pytest.raises(CircuitTracerError, match=r"tensors note \(1,\) are not understood"):
        load_transcoder_from_hub(tmp_path / "npz", **HOOKS)
    written("native-clt", tmp_path / "clt")
    part = tmp_path / "clt" / "W_dec_0.safetensors"
    write_tensors(part, read_tensors(part) | {"b_enc_0": torch.zeros(F)})
    with pytest.raises(FileFormatError, match=r"W_dec_0.safetensors has b_enc_0, which .*W_enc_0.safetensors has too"):
        load_transcoder_from_hub(tmp_path / "clt", **HOOKS)


@pytest.mark.parametrize("kind", ["native-clt-jump", "native-plt-jump", "gemma-scope-2-plt"])
def test_thresholds_stay_in_float32(folder, kind):
    layout = written(kind, folder)
    fine, coarse = (
        load_transcoder_from_hub(folder, dtype=dtype, **layout.hooks)[0] for dtype in (None, torch.bfloat16)
    )
    moved = load_transcoder_from_hub(folder, **layout.hooks)[0].to(torch.bfloat16)
    for layer in range(L):
        for loaded in (coarse, moved):
            function = loaded.activation(layer)
            assert isinstance(function, JumpReLU)
            assert loaded.encoder_bias(layer).dtype == torch.bfloat16
            torch.testing.assert_close(function.threshold, fine.activation(layer).threshold, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=["one for all", "one", "one each"])
def test_a_pre_activation_is_compared_with_the_threshold_as_it_is(shape):
    pre = torch.full((2, 3), 1.0078125, dtype=torch.bfloat16)  # the next number above 1
    just_above, just_below = 1.0078125 + 1e-4, 1.0078125 - 1e-4
    assert not JumpReLU(torch.full(shape, just_above))(pre).any()
    assert JumpReLU(torch.full(shape, just_below))(pre).all()
    assert JumpReLU(torch.full(shape, just_below)).to(torch.bfloat16)(pre).all()
    assert JumpReLU(torch.full(shape, just_above)).double().threshold.dtype == torch.float64


@pytest.mark.parametrize("hookpoint", ["layers.{}.self_attn", "layers.{}", "gpt_neox.layers.{}"])
def test_a_folder_of_sparsify_named_after_another_module_is_no_mlps_transcoder(folder, hookpoint):
    written("sparsify", folder)
    for layer, place in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        place.rename(folder / hookpoint.format(layer))
    with pytest.raises(FileFormatError, match="a transcoder that replaces an MLP layer"):
        load_transcoder_from_hub(folder, **HOOKS)


def test_notes_of_how_saelens_trained_are_harmless(folder):
    layout = written("saelens", folder)
    details = {"training_architecture": "transcoder", "training_architecture_details": {"l1_coefficient": 1.0}}
    layout.add_key(folder, "metadata", details)
    load_transcoder_from_hub(folder, **HOOKS)


def test_arguments_are_called_arguments_where_there_is_no_config(folder):
    written("saelens", folder)
    with pytest.raises(FileFormatError, match=r"the call for .* says feature_input_hook = 'hook_resid_mid', but"):
        load_transcoder_from_hub(folder, feature_input_hook="hook_resid_mid")


def test_a_truth_value_is_no_k(folder):
    save_transcoders(random_set("topk"), folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(HOOKS | {"activation": "topk", "k": True}))
    with pytest.raises(FileFormatError, match="k: input should be a valid integer, found True"):
        load_transcoder_from_hub(folder)


@pytest.mark.parametrize("bias", ["b_enc", "b_dec"])
def test_an_infinite_bias_is_refused(folder, bias):
    folder.mkdir()
    tensors = {"W_enc": uniform(F, D), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
    tensors[bias][1] = float("inf")
    save_file(tensors, folder / "layer_0.safetensors")
    with pytest.raises(NumericalError, match="a bias is infinite"):
        load_transcoder_from_hub(folder, **HOOKS)
