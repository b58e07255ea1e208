"""What is written comes back: every kind, activation and skip, lazy or not; and the files are circuit-tracer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders import TopK, load_transcoder_from_hub, save_transcoders
from tests.support.dictionaries import ACTIVATIONS, KINDS, random_clt, random_set, random_transcoders, uniform


def parts(transcoders):
    for layer in range(transcoders.n_layers):
        yield transcoders.encoder(layer).whole()
        yield transcoders.decoder(layer).whole()
        yield transcoders.encoder_bias(layer)
        yield transcoders.decoder_bias(layer)
        if transcoders.skip_connection:
            yield transcoders.skip_matrix(layer)


@pytest.mark.few
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_transcoders_are_equal(tmp_path, kind, activation, skip, lazy):
    original = random_transcoders(kind, activation, skip)
    save_transcoders(original, tmp_path, model_name="tiny/model")
    loaded, config = load_transcoder_from_hub(tmp_path, lazy_encoder=lazy, lazy_decoder=lazy)
    assert (config["model_kind"], config["model_name"]) == (kind, "tiny/model")
    assert type(loaded) is type(original)
    for name in ("n_layers", "d_model", "d_transcoder", "skip_connection", "feature_input_hook", "scan"):
        assert getattr(loaded, name) == getattr(original, name)
    for a, b in zip(parts(original), parts(loaded), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    x = uniform(3, 4, 5)
    torch.testing.assert_close(loaded.encode(x), original.encode(x))
    torch.testing.assert_close(loaded(x), original(x))
    for layer in range(3):
        for a, b in zip(
            original.encode_positions(layer, x[layer]), loaded.encode_positions(layer, x[layer]), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_kept_on_request_and_converted_otherwise(tmp_path, kind):
    make = random_set if kind == "transcoder_set" else random_clt
    original = make("jump_relu", True, dtype=torch.bfloat16)
    save_transcoders(original, tmp_path)
    index = torch.tensor([7, 2, 7, 0])
    for lazy in (False, True):
        kept, _ = load_transcoder_from_hub(tmp_path, dtype=None, lazy_encoder=lazy, lazy_decoder=lazy)
        assert kept.dtype == torch.bfloat16
        assert torch.equal(kept.decoder_rows(1, index), original.decoder_rows(1, index))
        wide, _ = load_transcoder_from_hub(tmp_path, lazy_encoder=lazy, lazy_decoder=lazy)
        assert torch.equal(wide.decoder_rows(1, index), original.decoder_rows(1, index).float())
        assert wide.encode_positions(0, uniform(4, 5))[2].dtype == torch.float32
        assert wide.to(torch.float64).encoder_rows(0, index)[0].dtype == torch.float64


def test_cross_layer_files_are_circuit_tracers(tmp_path):
    save_transcoders(random_clt("jump_relu", True), tmp_path)
    expected = [f"W_{part}_{layer}.safetensors" for part in ("dec", "enc") for layer in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*expected, "config.yaml"]
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "W_enc_1.safetensors").items()}
    assert shapes == {"W_enc_1": (13, 5), "b_enc_1": (13,), "b_dec_1": (5,), "W_skip_1": (5, 5), "threshold_1": (13,)}
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "W_dec_1.safetensors").items()}
    assert shapes == {"W_dec_1": (13, 2, 5)}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config.pop("digest").startswith("sha256:")
    assert config == {
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    }


def test_per_layer_files_are_circuit_tracers(tmp_path):
    save_transcoders(random_set("jump_relu", True), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        *(f"layer_{i}.safetensors" for i in range(3)),
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "layer_2.safetensors").items()}
    assert shapes == {
        "W_enc": (13, 5),
        "W_dec": (13, 5),
        "b_enc": (13,),
        "b_dec": (5,),
        "W_skip": (5, 5),
        "activation_function.threshold": (13,),
    }


def test_topk_is_named_in_the_config(tmp_path):
    save_transcoders(random_clt("topk"), tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 3)


def test_topk_keeps_its_k_in_every_file(tmp_path):
    save_transcoders(random_set("topk"), tmp_path)
    with safe_open(tmp_path / "layer_0.safetensors", "pt") as file:
        assert file.metadata()["k"] == "3"
    (tmp_path / "config.yaml").unlink()
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    loaded, _ = load_transcoder_from_hub(tmp_path, **hooks)
    assert isinstance(loaded.activation(0), TopK)
    assert loaded.activation(0).k == 3


def test_another_transcoders_layers_are_not_mixed_in(tmp_path):
    save_transcoders(random_set(n_layers=3), tmp_path)
    with pytest.raises(InputError, match=r"layer_2\.safetensors"):
        save_transcoders(random_set(n_layers=2), tmp_path)
    assert load_transcoder_from_hub(tmp_path)[0].n_layers == 3


def test_a_lazy_transcoder_can_be_saved_over_itself(tmp_path):
    original = random_clt()
    save_transcoders(original, tmp_path)
    lazy, _ = load_transcoder_from_hub(tmp_path, lazy_encoder=True, lazy_decoder=True)
    save_transcoders(lazy, tmp_path)
    again, _ = load_transcoder_from_hub(tmp_path)
    for a, b in zip(parts(original), parts(again), strict=True):
        assert torch.equal(a, b)


def test_relative_folders_are_local(tmp_path, monkeypatch: pytest.MonkeyPatch):
    save_transcoders(random_clt(), tmp_path / "my" / "clt")
    monkeypatch.chdir(tmp_path)
    for reference in ("my/clt", "./my/clt", Path("my/clt")):
        loaded, config = load_transcoder_from_hub(reference)
        assert loaded.n_layers == 3
        assert "repo_id" not in config
