"""Every tensor and every key of a folder of transcoders is used, known to be harmless, or refused; never dropped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.formats import FORMATS
from circuit_tracer.transcoders.loading import load_dictionary
from tests.support.autoencoder_layouts import AUTOENCODERS
from tests.support.dictionaries import uniform
from tests.support.transcoder_layouts import LAYOUTS, D, F, K, L, Layout

TENSORS = (
    "threshold", "log_threshold", "activation_function.threshold", "activation_function.log_threshold", "post_enc",
    "scaling_factor", "finetuning_scaling_factor", "in_norm", "out_norm", "W_enc.bias", "mean", "b_pre", "b_dec_out",
    "W_skip", "affine_skip_connection", "W_gate", "b_gate", "r_mag", "b_mag", "input_scale", "decoder_norm", "k",
    "estimated_norm_scaling_factor", "running_mean",
)  # fmt: skip
KEYS = {
    "activation_fn": "tanh-relu", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1}, "activation": "groupmax",
    "k": 1, "normalize_io": True, "normalize_activations": "layer_norm", "apply_b_dec_to_input": True,
    "rescale_acts_by_decoder_norm": True, "sparsity_include_decoder_norm": True, "norm_factor": 2.0,
    "dataset_average_activation_norm": {"in": 3.0}, "finetuning_scaling_factor": True, "reshape_activations": "hook_z",
    "architecture": "gated", "type": "sae", "transcode": False, "hook_name": "blocks.0.hook_resid_post", "hook_layer": 5,
    "hf_hook_point_in": "model.layers.0.output", "d_in": D + 1, "d_sae": F + 1, "width": F + 1, "skip_connection": True,
    "affine_connection": False, "jumprelu_threshold": 0.3, "act_fn": "relu6",
}  # fmt: skip
SPECIAL = {
    "Gemma Scope 1": "gemma-scope", "Gemma Scope 2 per-layer": "gemma-scope-2",
    "Gemma Scope 2 cross-layer": "gemma-scope-2",
}  # fmt: skip
X = torch.linspace(-2, 2, L * 9 * D).sin().view(L, 9, D) * 2


# of autoencoders, one a reader; their formulas are in test_autoencoder_formats.py
ALSO = ("saelens-gated", "gemma-scope-2-sae", "sparsify-sae", "open-moss-sae", "llama-scope", "qwen-scope", "goodfire",
        "switch", "dictionary-learning-GatedAutoEncoder")  # fmt: skip
EVERY = LAYOUTS | {name: AUTOENCODERS[name][0] for name in ALSO}


class Changes:
    """A copy of a folder that is put back before each change."""

    def __init__(self, folder: Path, copy: Path) -> None:
        shutil.copytree(folder, copy)
        self.copy, self.before = copy, {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    def fresh(self) -> Path:
        for path in self.copy.rglob("*"):
            if path.is_file() and self.before.get(path) != path.read_bytes():
                path.unlink()  # what is mapped stays as it was
        for path, data in self.before.items():
            if not path.exists():
                path.write_bytes(data)
        return self.copy


@pytest.fixture(scope="module", params=EVERY, ids=str)
def written(request, tmp_path_factory):
    """A layout, a valid folder of it, and what its own library computes on X."""
    layout, folder = EVERY[request.param], tmp_path_factory.mktemp("layout") / "set"
    torch.manual_seed(0)
    folder.mkdir()
    return layout, folder, layout.write(folder)(X)


def computed(layout: Layout, folder):
    """What is loaded computes on X, and where it stands."""
    loaded, config = load_dictionary(folder, **layout.hooks)
    return loaded(X), config["feature_input_hook"], config["feature_output_hook"]


def assert_used_or_refused(layout: Layout, folder, original, what: str) -> None:
    try:
        found, *hooks = computed(layout, folder)
    except CircuitTracerError:
        return
    same = torch.allclose(found, original[0], atol=1e-6) and tuple(hooks) == tuple(original[1:])
    assert not same, f"{what} was ignored"


def test_every_format_has_a_miniature():
    assert {layout.format for layout in EVERY.values()} == {each.name for each in FORMATS}


def test_a_valid_folder_computes_what_its_library_computes(written):
    layout, folder, expected = written
    for lazy in (False, True):
        loaded, _ = load_dictionary(folder, lazy_encoder=lazy, lazy_decoder=lazy, **layout.hooks)
        torch.testing.assert_close(loaded(X), expected)


@pytest.mark.few
def test_no_tensor_is_ignored(written, tmp_path):
    layout, folder, expected = written
    original = computed(layout, folder)
    torch.testing.assert_close(original[0], expected)
    changes = Changes(folder, tmp_path / "set")
    for name in TENSORS:
        for shape in ((F,), (), (D, D)) if name in ("k", "W_skip", "threshold") else ((F,),):
            changed = changes.fresh()
            layout.add_tensor(changed, name, torch.rand(shape) + 0.5)
            assert_used_or_refused(layout, changed, original, f"tensor {name} {shape}")


@pytest.mark.few
def test_no_key_is_ignored(written, tmp_path):
    layout, folder, _ = written
    original = computed(layout, folder)
    changes = Changes(folder, tmp_path / "set")
    for number, (key, value) in enumerate(KEYS.items()):
        if layout.key(folder, key) == value or key in layout.redundant:
            continue
        changed = changes.fresh()
        layout.add_key(changed, key, value, ("cfg.json", "config.json", "hyperparams.json")[number % 3])
        assert_used_or_refused(layout, changed, original, f"key {key}")


@pytest.mark.few
@settings(max_examples=6, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text("abkmnw_.0", min_size=2, max_size=9), data=st.data())  # "k" alone is a key that is used
def test_no_name_whatever_is_ignored(written, tmp_path_factory, name, data):
    layout, folder, _ = written
    changed = tmp_path_factory.mktemp("any") / "set"
    shutil.copytree(folder, changed)
    if data.draw(st.booleans()):
        layout.add_tensor(changed, name, torch.rand(F))
    else:
        layout.add_key(changed, name, data.draw(st.sampled_from([1, 0.5, True, "x", [2], {"y": 1}])))
    with pytest.raises(CircuitTracerError):
        computed(layout, changed)


@pytest.mark.few
def test_no_key_of_the_set_is_ignored(written, tmp_path):
    layout, folder, _ = written
    shutil.copytree(folder, tmp_path / "set")
    original = computed(layout, folder)
    config = {"feature_input_hook": original[1], "feature_output_hook": original[2]}
    for key, value in (
        ("activation", "topk"), ("activation", "jump_relu"), ("activation", "relu"), ("k", K + 1), ("k", 1),
        ("activation_fn", "topk"), ("input_scale", 2.0), ("normalize_io", True), ("special_load_fn", "gemma-scope"),
        ("special_load_fn", "gemma-scope-2"), ("special_load_fn", "mine"), ("model_kind", "transcoder_set"),
        ("model_kind", "cross_layer_transcoder"), ("feature_input_hook", "ln2.hook_normalized"), ("thresholds", [1.0]),
    ):  # fmt: skip
        (tmp_path / "set" / "config.yaml").write_text(yaml.safe_dump(config | {key: value}))
        try:
            found, _ = load_dictionary(tmp_path / "set")
        except CircuitTracerError:
            continue
        said = {
            "activation": found.activation(0).name,
            "k": getattr(found.activation(0), "k", None),
            "special_load_fn": SPECIAL.get(layout.format),
            "model_kind": found.kind,
            "feature_input_hook": found.feature_input_hook,
        }
        assert said[key] == value, f"{key} = {value} was ignored"


def test_no_file_of_weights_is_ignored(written, tmp_path):
    layout, folder, _ = written
    for name in (
        "threshold.safetensors",
        "W_skip_0.safetensors",
        "layer_5_extra.safetensors",
        "layer_0.pt",
        "b_dec.npy",
    ):
        changed = tmp_path / name
        shutil.copytree(folder, changed)
        save_file({"threshold": torch.rand(F)}, changed / name)
        with pytest.raises(CircuitTracerError, match=name.split(".")[0]):
            computed(layout, changed)


@pytest.mark.parametrize(
    "name", ["cfg.yaml", "sae_cfg.json", "hparams.yml", "norms.json", "metadata.json", "{stem}.json"]
)
def test_no_file_of_settings_is_ignored(tmp_path, name):
    layout = LAYOUTS["gemma-scope-1"]
    layout.write(tmp_path)
    (tmp_path / name.format(stem="layer_0")).write_text('{"input_scale": 2.0}')
    with pytest.raises(FileFormatError, match=r"keys input_scale = 2\.0"):
        computed(layout, tmp_path)
    (tmp_path / name.format(stem="layer_0")).write_text('{"dtype": "float32"}')
    computed(layout, tmp_path)


def test_harmless_values_pass_and_others_do_not(tmp_path):
    layout = LAYOUTS["saelens"]
    layout.write(tmp_path)
    original = computed(layout, tmp_path)[0]
    layout.add_tensor(tmp_path, "scaling_factor", torch.ones(F))
    layout.add_key(tmp_path, "rescale_acts_by_decoder_norm", False)
    layout.add_key(tmp_path, "dtype", "bfloat16")
    torch.testing.assert_close(computed(layout, tmp_path)[0], original)
    layout.add_key(tmp_path, "rescale_acts_by_decoder_norm", 0)
    with pytest.raises(FileFormatError, match=r"keys rescale_acts_by_decoder_norm = 0 \(cfg.json\) are not understood"):
        computed(layout, tmp_path)


def test_a_language_models_configuration_beside_transcoders_is_none_of_theirs(tmp_path):
    layout = LAYOUTS["native-plt"]
    layout.write(tmp_path)
    said = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D}
    (tmp_path / "config.json").write_text(json.dumps(said))
    computed(layout, tmp_path)


def test_notes_of_a_safetensors_file_are_free_unless_they_say_what_is_computed(tmp_path):
    layout = LAYOUTS["native-plt-topk"]
    expected = layout.write(tmp_path)(X)
    path = tmp_path / "layer_0.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, {"format": "pt", "author": "somebody", "trained": "2026"})
    torch.testing.assert_close(computed(layout, tmp_path)[0], expected)
    for name, text in (("activation", "relu"), ("relu_before_topk", "maybe"), ("input_scale", "2"), ("k", "5")):
        save_file(tensors, path, {name: text})
        with pytest.raises(FileFormatError, match=name):
            computed(layout, tmp_path)


def test_k_in_a_files_metadata_is_a_whole_number_and_agrees_with_the_tensor(tmp_path):
    layout = LAYOUTS["native-plt-topk"]
    expected = layout.write(tmp_path)(X)
    path = tmp_path / "layer_0.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, {"k": str(K)})
    torch.testing.assert_close(computed(layout, tmp_path)[0], expected)
    for text in ("0", "-1", "2.0", "", "many", str(K + 1)):
        save_file(tensors, path, {"k": text})
        with pytest.raises(FileFormatError, match=r"k is .* in its metadata"):
            computed(layout, tmp_path)


def test_only_topk_is_called_topk(tmp_path):
    """The kind that circuit-tracer refuses stands for TopK alone."""
    layout = LAYOUTS["native-clt"]
    layout.write(tmp_path)
    (tmp_path / "config.yaml").write_text("model_kind: topk_cross_layer_transcoder\n")
    with pytest.raises(FileFormatError, match="topk_cross_layer_transcoder, but activation None; topk is expected"):
        computed(layout, tmp_path)


def test_two_answers_to_one_question_are_an_error(tmp_path):
    torch.manual_seed(0)
    tensors = {"W_enc": uniform(F, D), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
    threshold = {"activation_function.threshold": torch.rand(F)}
    for extra, message in (
        (threshold | {"k": torch.tensor(2)}, "JumpReLU or TopK, not both"),
        ({"k": torch.tensor(2.5)}, "whole number"),
        ({"k": torch.tensor([1, 2])}, "one number"),
        ({"activation_function.threshold": torch.rand(F, 1)}, "threshold"),
        ({"activation_function.threshold": torch.ones(F, dtype=torch.int64)}, "threshold"),
    ):
        save_file(tensors | extra, tmp_path / "layer_0.safetensors")
        with pytest.raises(FileFormatError, match=message):
            load_transcoder_from_hub(tmp_path, feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out")


def test_the_folder_of_a_training_run_says_where_its_dictionary_is(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {name: a}\ndictionary: {features: 8}\nrun: {out: b}\n")
    with pytest.raises(
        FileFormatError, match=rf"{tmp_path} is the folder of a training run; .*{tmp_path / 'transcoder'}"
    ):
        load_transcoder_from_hub(str(tmp_path))
