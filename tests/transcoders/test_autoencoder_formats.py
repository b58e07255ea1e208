"""Published autoencoders, each against its own library's formula; none is taken for a transcoder or for another layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import load_transcoder, load_transcoder_from_hub, save_transcoders
from circuit_tracer.transcoders.autoencoders import Autoencoders, are_autoencoders, load_autoencoders
from circuit_tracer.transcoders.formats import FORMATS
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.loading import load_dictionary
from tests.support.autoencoder_layouts import AUTOENCODERS
from tests.support.dictionaries import uniform
from tests.support.transcoder_layouts import HOOKS, LAYOUTS, D, F, K, L

X = torch.linspace(-2, 2, L * 9 * D).sin().view(L, 9, D) * 2


@pytest.fixture(scope="module", params=AUTOENCODERS)
def written(request, tmp_path_factory):
    (layout, place), folder = AUTOENCODERS[request.param], tmp_path_factory.mktemp("layout") / "set"
    torch.manual_seed(0)
    folder.mkdir()
    return layout, place, folder, layout.write(folder)(X)


@pytest.mark.few
def test_what_is_loaded_computes_what_its_library_computes(written, tmp_path):
    layout, place, folder, expected = written
    for lazy in (False, True):
        loaded, config = load_dictionary(folder, lazy_encoder=lazy, lazy_decoder=lazy)
        torch.testing.assert_close(loaded(X), expected)
    assert (config["feature_input_hook"], config["feature_output_hook"]) == (place, place)
    assert loaded.is_autoencoder
    folders = [folder]
    if layout.format == "switch autoencoder":
        with pytest.raises(InputError, match="keep the files it came in"):
            save_transcoders(loaded, tmp_path)
    else:
        save_transcoders(loaded, tmp_path)
        torch.testing.assert_close(load_dictionary(tmp_path)[0](X), expected)
        folders.append(tmp_path)
    for each in folders:
        assert are_autoencoders(each) or layout.format == "Gemma Scope 1"
        with pytest.raises(FileFormatError, match=f"is a sparse autoencoder at {place}: it replaces no MLP"):
            load_transcoder_from_hub(each)


def test_one_file_of_one_is_no_transcoder(written):
    layout, _, folder, _ = written
    with pytest.raises(FileFormatError, match="is a sparse autoencoder at"):
        load_transcoder(layout.files(folder)[0], 0)


def test_no_layout_is_recognised_twice(written, tmp_path):
    layout, _, folder, _ = written
    for path in layout.files(folder)[:1]:
        assert [each.name for each in FORMATS if each.detect(LayerFile(open_tensor_file(path)))] == [layout.format]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.startswith("native-clt")])  # two files a layer
def test_nor_is_a_transcoder_an_autoencoder(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    file = LayerFile(open_tensor_file(layout.files(tmp_path)[0]))
    fitting = [each.name for each in FORMATS if each.detect(file)]
    assert layout.format in fitting
    assert not [each for each in fitting if "autoencoder" in each]
    assert not are_autoencoders(tmp_path)


def test_those_of_some_layers_by_the_models_numbers_and_from_nought(tmp_path):
    layout, _ = AUTOENCODERS["saelens-gated"]
    expected = layout.write(tmp_path)(X)
    loaded, _ = load_dictionary(tmp_path, select="layer=0+2")
    assert loaded.layers == (0, 2)
    torch.testing.assert_close(loaded(X)[[0, 2]], expected[[0, 2]])
    found = Autoencoders.of(loaded, "gpt2")
    torch.testing.assert_close(found.dictionary(X[[0, 2]]), expected[[0, 2]])
    assert (found.layers, found.placed.layers) == ((0, 2), (0, 2))
    assert load_autoencoders(tmp_path).model_name == "gpt2"
    with pytest.raises(InputError, match=r"has no layer 7: it has 0, 1, 2"):
        load_dictionary(tmp_path, select="layer=2+7")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("saelens-jump", "normalize_activations", "layer_norm", "scales each input by its own norm"),
        ("saelens-topk", "normalize_activations", "expected_average_only_in", "the factor is not known"),
        ("saelens-jump", "normalize_activations", "none", "a scaling factor 1.7 lies beside it"),
        ("saelens-jump", "activation_fn", "tanh-relu", "'tanh-relu' beside thresholds"),
        ("saelens-gated", "architecture", "standard", "'standard' does not go with the tensors"),
        ("saelens-topk", "k", None, "needs a whole k"),
        ("gemma-scope-2-sae", "hf_hook_point_out", "model.layers.0.output", "an autoencoder, which writes where it reads"),
        ("gemma-scope-2-sae", "hf_hook_point_in", None, "an autoencoder, which writes where it reads"),
        ("sparsify-sae", "activation", "groupmax", "only topk"),
        ("dictionary-learning-AutoEncoder", "trainer", {"dict_class": "CrossCoder"}, "dict_class 'CrossCoder'"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(tmp_path, name, key, value, message):
    layout, _ = AUTOENCODERS[name]
    layout.write(tmp_path)
    layout.add_key(tmp_path, key, value)
    with pytest.raises(FileFormatError, match=message):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("model_name", "place", "centred"),
    [
        ("gpt2-small", "hook_resid_pre", True),
        ("EleutherAI/pythia-70m", "hook_mlp_out", True),
        ("gpt2-small", "attn.hook_z", False),  # the heads write nothing yet
        ("gemma-2b", "hook_resid_post", False),  # TransformerLens centres no model with RMSNorm
        ("not-gpt2-but-named-so", "hook_resid_post", False),
    ],
)
def test_a_centred_stream_is_folded_in(tmp_path, model_name, place, centred):
    t = {"W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
    said = {"model_name": model_name, "hook_name": f"blocks.0.{place}"}
    said["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "layer_0").mkdir()
    save_file(t, tmp_path / "layer_0" / "sae_weights.safetensors")
    (tmp_path / "layer_0" / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": said}))
    x = X[0] - (X[0].mean(-1, keepdim=True) if centred else 0)
    expected = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    torch.testing.assert_close(load_dictionary(tmp_path)[0].encode_layer(X[0], 0), expected)


@pytest.mark.parametrize("name", ["gemma-scope-1-att", "gemma-scope-2-sae", "saelens-jump"])
def test_a_threshold_below_nought_lets_nothing_negative_through(tmp_path, name):
    """Their libraries compute max(pre, 0) where pre exceeds the threshold."""
    layout, _ = AUTOENCODERS[name]
    layout.write(tmp_path)
    layout.add_tensor(tmp_path, "threshold", torch.full((F,), -1.0))
    loaded, _ = load_dictionary(tmp_path)
    found = loaded.encode_layer(X[0], 0)
    torch.testing.assert_close(found, loaded.encode_layer(X[0], 0, apply_activation_function=False).relu())
    assert (found > 0).any()


def test_files_without_a_place_are_what_both_hooks_say(tmp_path):
    """Gemma Scope 1's are read as autoencoders where they are said to be; by themselves, with a warning, as transcoders."""
    layout = LAYOUTS["gemma-scope-1"]
    expected = layout.write(tmp_path)(X)
    hooks = {"feature_input_hook": "hook_resid_post", "feature_output_hook": "hook_resid_post"}
    loaded, _ = load_dictionary(tmp_path, **hooks)
    assert loaded.is_autoencoder
    torch.testing.assert_close(loaded(X), expected)
    with pytest.raises(InputError, match=r"mlp\.hook_in.*at one place"):
        load_dictionary(tmp_path, feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_in")


def test_how_many_features_qwen_scope_keeps_must_be_known(tmp_path):
    layout, _ = AUTOENCODERS["qwen-scope"]
    expected = layout.write(tmp_path)(X)
    (tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3").rename(tmp_path / "mine")
    with pytest.raises(FileFormatError, match=r'write \{"k": 100\} into a cfg.json'):
        load_dictionary(tmp_path)
    (tmp_path / "mine" / "cfg.json").write_text(json.dumps({"k": K}))
    torch.testing.assert_close(load_dictionary(tmp_path)[0](X), expected)


def test_goodfires_layer_is_in_the_name(tmp_path):
    layout, _ = AUTOENCODERS["goodfire"]
    layout.write(tmp_path)
    alone = tmp_path / "alone" / "Llama-3.1-8B-Instruct-SAE-l1.pth"
    alone.parent.mkdir()
    layout.files(tmp_path)[1].rename(alone)
    assert load_dictionary(alone.parent)[0].layers == (1,)


def test_two_linear_layers_stand_where_they_are_said_to(tmp_path):
    """Names that others use too say no place: what the published ones have is assumed, with a warning."""
    t = {"encoder.weight": uniform(F, D), "encoder.bias": uniform(F), "decoder.weight": uniform(D, F)}
    torch.save(t | {"decoder.bias": uniform(D)}, tmp_path / "sae-l1.pth")
    with pytest.warns(UserWarning, match="nothing says where.*hook_resid_post"):
        assert load_dictionary(tmp_path)[0].feature_input_hook == "hook_resid_post"
    hooks = {"feature_input_hook": "hook_mlp_out", "feature_output_hook": "hook_mlp_out"}
    assert load_dictionary(tmp_path, **hooks)[0].layers == (1,)
    with pytest.raises(FileFormatError, match="is a sparse autoencoder at hook_resid_post"):
        load_transcoder(tmp_path / "sae-l1.pth", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sae": {"W_E": torch.zeros(D, F)}, "version": "1"}, r"fits no known transcoder format.\nFound: sae.W_E \(4, 7\)"),
        ({"W_enc": [1, 2]}, r"'W_enc' is \[1, 2\]; tensors, numbers and texts are read"),
        ([torch.zeros(1)], "holds list; a dict of tensors"),
        ([len], "was not loaded: it names len"),
        ({"encoder_linear.weight": torch.zeros(F, 1).expand(F, D)}, "expanded"),
    ],
    ids=["unknown", "values", "list", "objects", "expanded"],
)  # fmt: skip
def test_pickles_are_read_as_tensors_or_not_at_all(tmp_path, content, message):
    torch.save(content, tmp_path / "layer_0.pt")
    with pytest.raises(FileFormatError, match=message):
        load_dictionary(tmp_path)


def test_a_residual_autoencoder_of_all_layers_of_gemma_scope_2_is_never_a_transcoder(tmp_path):
    """Tensors alone, without config.json, are taken for what the hooks say, and hooks must be given."""
    layout, _ = AUTOENCODERS["gemma-scope-2-sae"]
    layout.write(tmp_path)
    with pytest.raises(FileFormatError, match="says feature_input_hook = "):
        load_dictionary(tmp_path, **HOOKS)
    for path in tmp_path.glob("*/config.json"):
        path.unlink()
    with pytest.raises(InputError, match="do not say where"):
        load_dictionary(tmp_path)


def test_an_embedding_or_a_head_is_no_place(tmp_path):
    layout, _ = AUTOENCODERS["saelens-topk"]
    layout.write(tmp_path)
    for said, message in (("hook_embed", "stands at hook_embed"), ("blocks.0.mlp.hook_post", "neurons")):
        layout.add_key(tmp_path, "metadata", {"hook_name": said})
        with pytest.raises(FileFormatError, match=message):
            load_dictionary(tmp_path)
    layout.add_key(tmp_path, "metadata", {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 3})
    with pytest.raises(FileFormatError, match=r"metadata.hook_head_index = 3"):
        load_dictionary(tmp_path)
