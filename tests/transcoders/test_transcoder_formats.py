"""Foreign formats, recognised by their tensors, compute what their own libraries compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import FileFormatError, InputError, NumericalError
from circuit_tracer.transcoders import (
    load_clt,
    load_gemma_scope_2_clt,
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder,
    load_transcoder_from_hub,
    load_transcoder_set,
    save_transcoders,
)
from tests.support.dictionaries import random_clt, random_set, uniform

L, F, D = 3, 11, 4
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


def jump(pre, threshold):
    return pre * (pre > threshold)


def assert_converts_to_native(loaded, x, folder):
    """Saving in native files and loading those changes nothing."""
    save_transcoders(loaded, folder)
    native, _ = load_transcoder_from_hub(folder)
    torch.testing.assert_close(native(x), loaded(x))


def gemma_scope_1_layer():
    return {
        "W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D),
        "threshold": torch.rand(F),
    }  # fmt: skip


def gemma_scope_2_layer(layer=None):
    decoder = uniform(F, D) if layer is None else uniform(F, L, D)
    if layer is not None:
        decoder[:, :layer] = 0
    return {
        "w_enc": uniform(D, F), "w_dec": decoder, "b_enc": uniform(F), "b_dec": uniform(D),
        "threshold": torch.rand(F), "affine_skip_connection": uniform(D, D),
    }  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True])
def test_gemma_scope_1(tmp_path, lazy):
    tensors = [gemma_scope_1_layer() for _ in range(L)]
    for layer, each in enumerate(tensors):
        np.savez(tmp_path / f"layer_{layer}.npz", **{name: tensor.numpy() for name, tensor in each.items()})
    loaded, _ = load_transcoder_from_hub(tmp_path, lazy_encoder=lazy, lazy_decoder=lazy)
    assert (loaded.feature_input_hook, loaded.feature_output_hook) == ("ln2.hook_normalized", "hook_mlp_out")
    x = uniform(L, 6, D)
    for layer, t in enumerate(tensors):
        acts = jump(x[layer] @ t["W_enc"] + t["b_enc"], t["threshold"])
        torch.testing.assert_close(loaded(x)[layer], acts @ t["W_dec"] + t["b_dec"])
    one = load_gemma_scope_transcoder(str(tmp_path / "layer_1.npz"), 1)
    torch.testing.assert_close(one(x[1]), loaded(x)[1])
    assert_converts_to_native(loaded, x, tmp_path / "native")


@pytest.mark.parametrize("lazy", [False, True])
def test_gemma_scope_2_per_layer(tmp_path, lazy):
    tensors = [gemma_scope_2_layer() for _ in range(L)]
    for layer, each in enumerate(tensors):
        save_file(each, tmp_path / f"layer_{layer}.safetensors")
    loaded, _ = load_transcoder_from_hub(tmp_path, lazy_encoder=lazy, lazy_decoder=lazy, **HOOKS)
    x = uniform(L, 6, D)
    for layer, t in enumerate(tensors):
        acts = jump(x[layer] @ t["w_enc"] + t["b_enc"], t["threshold"])
        expected = acts @ t["w_dec"] + t["b_dec"] + x[layer] @ t["affine_skip_connection"]
        torch.testing.assert_close(loaded(x)[layer], expected)
        torch.testing.assert_close(loaded.skip_matrix(layer), t["affine_skip_connection"])
    one = load_gemma_scope_2_transcoder(tmp_path / "layer_1.safetensors", 1)
    torch.testing.assert_close(one(x[1]), loaded(x)[1])
    assert_converts_to_native(loaded, x, tmp_path / "native")


def gemma_clt_reference(tensors, x):
    y = torch.zeros_like(x)
    for layer, t in enumerate(tensors):
        acts = jump(x[layer] @ t["w_enc"] + t["b_enc"], t["threshold"])
        y += torch.einsum("pf,fld->lpd", acts, t["w_dec"])
        y[layer] += t["b_dec"] + x[layer] @ t["affine_skip_connection"]
    return y


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("layout", ["exact", "same file twice", "copied shard", "stacked"])
def test_gemma_scope_2_cross_layer_keeps_every_layer(tmp_path, layout, lazy):
    tensors = [gemma_scope_2_layer(layer) for layer in range(L)]
    paths = {}
    if layout == "stacked":
        save_file({name: torch.stack([t[name] for t in tensors]) for name in tensors[0]}, tmp_path / "clt.safetensors")
        loaded, _ = load_transcoder_from_hub(tmp_path, lazy_encoder=lazy, lazy_decoder=lazy, **HOOKS)
    else:
        for layer, each in enumerate(tensors):
            paths[layer] = tmp_path / f"layer_{layer}.safetensors"
            save_file(each, paths[layer])
        if layout == "same file twice":
            paths[L] = paths[L - 1]
        if layout == "copied shard":
            paths[L] = tmp_path / "again.safetensors"
            save_file(tensors[-1], paths[L])
        loaded = load_gemma_scope_2_clt(paths, dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy)
    assert loaded.n_layers == L
    x = uniform(L, 6, D)
    torch.testing.assert_close(loaded(x), gemma_clt_reference(tensors, x))
    assert loaded.decoder_rows(1, torch.tensor([5, 2])).shape == (2, L - 1, D)
    assert_converts_to_native(loaded, x, tmp_path / "native")


def test_gemma_scope_2_cross_layer_wants_all_layers_in_order(tmp_path):
    paths = {layer: tmp_path / f"layer_{layer}.safetensors" for layer in range(L)}
    for layer, path in paths.items():
        save_file(gemma_scope_2_layer(layer), path)
    with pytest.raises(FileFormatError, match="write to 3 layers, but 2 layers were given"):
        load_gemma_scope_2_clt({0: paths[0], 1: paths[1]})
    with pytest.raises(FileFormatError, match="writes to earlier layers too"):
        load_gemma_scope_2_clt({0: paths[2], 1: paths[0], 2: paths[1]})


def write_sparsify(folder, layer, k=3, **config):
    folder.mkdir(parents=True)
    tensors = {
        "encoder.weight": uniform(F, D), "encoder.bias": uniform(F), "W_dec": uniform(F, D), "b_dec": uniform(D),
        "W_skip": uniform(D, D),
    }  # fmt: skip
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": k, "activation": "topk", "transcode": True, **config}))
    return tensors


def test_sparsify_applies_relu_before_topk(tmp_path):
    tensors = [write_sparsify(tmp_path / f"layers.{layer}.mlp", layer) for layer in range(L)]
    loaded, _ = load_transcoder_from_hub(tmp_path, **HOOKS)
    x = uniform(L, 6, D)
    for layer, t in enumerate(tensors):
        pre = torch.relu(x[layer] @ t["encoder.weight"].T + t["encoder.bias"])
        value, index = pre.topk(3)
        acts = torch.zeros_like(pre).scatter(1, index, value)
        torch.testing.assert_close(loaded(x)[layer], acts @ t["W_dec"] + t["b_dec"] + x[layer] @ t["W_skip"].T)
    assert_converts_to_native(loaded, x, tmp_path / "native")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transcode": False}, "W_skip .* not understood by the reader of EleutherAI sparsify autoencoder"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": None}, "k None"),
    ],
)
def test_sparsify_refuses_what_it_cannot_honour(tmp_path, config, message):
    write_sparsify(tmp_path / "layers.0.mlp", 0, **config)
    with pytest.raises(FileFormatError, match=message):
        load_transcoder_from_hub(tmp_path, **HOOKS)


def write_saelens(folder, architecture, **config):
    folder.mkdir(parents=True)
    tensors = {"W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
    if "jumprelu" in architecture:
        tensors["threshold"] = torch.rand(F)
    if "skip" in architecture:
        tensors["W_skip"] = uniform(D, D)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": architecture, "d_in": D, "d_sae": F, **config}))
    return tensors


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_saelens(tmp_path, architecture):
    tensors = [write_saelens(tmp_path / f"layer_{layer}", architecture) for layer in range(L)]
    loaded, _ = load_transcoder_from_hub(tmp_path, **HOOKS)
    x = uniform(L, 6, D)
    for layer, t in enumerate(tensors):
        acts = jump(x[layer] @ t["W_enc"] + t["b_enc"], t.get("threshold", torch.tensor(0.0)))
        expected = acts @ t["W_dec"] + t["b_dec"]
        if "W_skip" in t:
            expected = expected + x[layer] @ t["W_skip"].T
        torch.testing.assert_close(loaded(x)[layer], expected)
    assert_converts_to_native(loaded, x, tmp_path / "native")


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("standard", {"hook_name": "blocks.0.hook_resid_pre"}, "says feature_input_hook = 'mlp.hook_in'"),
        ("transcoder", {"normalize_activations": "layer_norm"}, "changes the input"),
        ("transcoder", {"apply_b_dec_to_input": True}, "changes the input"),
    ],
)
def test_saelens_refuses_what_it_cannot_honour(tmp_path, architecture, config, message):
    write_saelens(tmp_path / "layer_0", architecture, **config)
    with pytest.raises(FileFormatError, match=message):
        load_transcoder_from_hub(tmp_path, **HOOKS)


def test_unknown_files_list_what_was_found_and_what_is_known(tmp_path):
    save_file({"foo": torch.zeros(3, 2)}, tmp_path / "layer_0.safetensors")
    with pytest.raises(FileFormatError) as caught:
        load_transcoder_from_hub(tmp_path, **HOOKS)
    message = str(caught.value)
    assert "foo (3, 2)" in message
    assert "Gemma Scope 2 cross-layer" in message
    assert "W_dec_{i} (F, L - i, D)" in message


def test_unknown_tensors_of_a_native_file_are_not_ignored(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    random_set()[0].to_safetensors(path)
    save_file(load_file(path) | {"log_thresholds": torch.zeros(13)}, path)
    with pytest.raises(FileFormatError, match=r"tensors log_thresholds \(13,\) are not understood"):
        load_transcoder(path, 0)


def test_a_transposed_native_encoder_is_not_taken_for_native(tmp_path):
    tensors = {"W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
    save_file(tensors, tmp_path / "layer_0.safetensors")
    with pytest.raises(FileFormatError, match="fits no known transcoder format"):
        load_transcoder(tmp_path / "layer_0.safetensors", 0)


def test_missing_layers_of_a_clt_are_named(tmp_path):
    save_transcoders(random_clt(n_layers=4), tmp_path / "clt")
    (tmp_path / "clt" / "W_enc_1.safetensors").unlink()
    (tmp_path / "clt" / "W_dec_2.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"W_enc_1\.safetensors, W_dec_2\.safetensors are missing"):
        load_clt(tmp_path / "clt")


def test_missing_last_layers_of_a_clt_are_noticed(tmp_path):
    save_transcoders(random_clt(n_layers=4), tmp_path)
    (tmp_path / "config.yaml").unlink()
    for part in ("enc", "dec"):
        (tmp_path / f"W_{part}_3.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"layer 0 has shape \(13, 4, 5\); with 3 layers \(F, 3, D\) is expected"):
        load_clt(tmp_path)


def test_layers_that_disagree_are_errors(tmp_path):
    hooks = {"scan": None, **HOOKS}
    good, jumping, skipping, wide = (
        random_set(), random_set("jump_relu"), random_set(skip=True), random_set(d_model=6)
    )  # fmt: skip
    save_transcoders(good, tmp_path / "good")
    paths = {layer: tmp_path / "good" / f"layer_{layer}.safetensors" for layer in range(3)}
    for other, what in ((jumping, "activation"), (skipping, "skip matrix"), (wide, "d_model")):
        other[1].to_safetensors(tmp_path / f"{what}.safetensors")
        with pytest.raises(FileFormatError, match=f"layers disagree on {what}"):
            load_transcoder_set(paths | {1: tmp_path / f"{what}.safetensors"}, **hooks)
    np.savez(tmp_path / "g.npz", **{name: tensor.numpy() for name, tensor in gemma_scope_1_layer().items()})
    with pytest.raises(FileFormatError, match="different formats"):
        load_transcoder_set(paths | {1: tmp_path / "g.npz"}, **hooks)
    with pytest.raises(InputError, match=r"transcoders of layers \[-1\]"):
        load_transcoder_set({-1: paths[0], 2: paths[2]}, **hooks)


def test_mixed_presence_in_a_clt_is_an_error(tmp_path):
    save_transcoders(random_clt("jump_relu", skip=True), tmp_path)
    (tmp_path / "config.yaml").unlink()
    path = tmp_path / "W_enc_1.safetensors"
    whole = load_file(path)
    for name, what in (("W_skip_1", "skip matrix"), ("threshold_1", "activation")):
        save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
        with pytest.raises(FileFormatError, match=f"layers disagree on {what}"):
            load_clt(tmp_path)


def test_wrong_shapes_and_nan_are_errors_with_the_file(tmp_path):
    save_transcoders(random_clt("jump_relu"), tmp_path)
    (tmp_path / "config.yaml").unlink()
    path = tmp_path / "W_enc_1.safetensors"
    whole = load_file(path)
    save_file(whole | {"b_enc_1": torch.zeros(12)}, path)
    with pytest.raises(
        FileFormatError, match=r"W_enc_1\.safetensors: the encoder bias .* \(12,\); expected .* \(13,\)"
    ):
        load_clt(tmp_path)
    save_file(whole | {"threshold_1": torch.full((13,), torch.nan)}, path)
    with pytest.raises(NumericalError, match=r"W_enc_1\.safetensors: the threshold contains NaN"):
        load_clt(tmp_path)
