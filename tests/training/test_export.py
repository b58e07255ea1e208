"""Exported files compute what was trained: against a dense float64 computation, for every kind and activation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuit_tracer.attribution import latent_target
from circuit_tracer.errors import FileFormatError, InputError, NumericalError, ResourceError
from circuit_tracer.files import read_yaml
from circuit_tracer.training.evaluation.evaluate import describe
from circuit_tracer.training.export.export import export, folded
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.transcoders import TopK, load_transcoder_from_hub
from circuit_tracer.transcoders.autoencoders import load_autoencoders
from circuit_tracer.transcoders.config import write_config
from circuit_tracer.transcoders.writes import reconstruct
from tests.support.export_cases import Exported, dense, exported, relative
from tests.support.loop_cases import LAYERS, SERVED, Run, tensors

FLOAT32 = 1e-5  # of the outputs' spread
BFLOAT16 = 2e-2  # 8 bits a weight, errors of k features and D products summed
TRANSCODERS = [Run(kind, activation) for kind, activation in SERVED if kind != "sae"]
SAES = [Run(kind, activation) for kind, activation in SERVED if kind == "sae" and activation != "switch"]


def encoded(made: Exported) -> list[torch.Tensor]:
    """Dense activations (B, F) of the loaded files on raw inputs."""
    x_SBD = made.inputs()[0].transpose(0, 1)
    return list(made.loaded().encode(x_SBD.double()))


def decoded(made: Exported, activations: list[torch.Tensor]) -> torch.Tensor:
    """Outputs (B, S, D) of the loaded files for activations, with the skip of raw inputs."""
    x_SBD = made.inputs()[0].transpose(0, 1)
    return made.loaded().to(torch.float64).decode(torch.stack(activations), x_SBD.double()).transpose(0, 1)


@pytest.mark.few
@pytest.mark.parametrize("run", TRANSCODERS, ids=str)
def test_files_encode_and_decode_as_the_trained_dictionary(run: Run, tmp_path: Path) -> None:
    made = exported(run, tmp_path, run__export_dtype="float32")
    wanted, outputs = dense(made)
    found = encoded(made)
    for mine, one in zip(found, wanted, strict=True):
        assert torch.equal(mine > 0, one > 0)
        assert int((mine > 0).sum()) > 0
        assert relative(mine, one) < FLOAT32
    assert relative(decoded(made, found), outputs) < FLOAT32
    x_SBD = made.inputs()[0].transpose(0, 1)
    assert relative(made.loaded()(x_SBD).transpose(0, 1), outputs) < FLOAT32


@pytest.mark.few
@pytest.mark.parametrize("run", TRANSCODERS, ids=str)
def test_files_in_bfloat16_are_within_their_rounding(run: Run, tmp_path: Path) -> None:
    made = exported(run, tmp_path, run__export_dtype="bfloat16")
    wanted, outputs = dense(made)
    stored = {path.name: load_file(path) for path in made.folder.glob("*.safetensors")}
    for name, tensor in ((n, t) for file in stored.values() for n, t in file.items()):
        matrix = name.startswith(("W_enc", "W_dec", "W_skip"))
        assert tensor.dtype is (torch.bfloat16 if matrix else torch.float32), name
    for mine, one in zip(encoded(made), wanted, strict=True):
        both = (mine > 0) & (one > 0)
        assert float((both ^ (one > 0)).float().mean()) < 0.02  # a few at their thresholds
        assert relative(mine[both], one[both]) < BFLOAT16
    assert relative(decoded(made, wanted), outputs) < BFLOAT16


@pytest.mark.few
@pytest.mark.parametrize("run", SAES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autoencoders_are_saelens_files(run: Run, dtype: str, tmp_path: Path) -> None:
    """Their equations, written out: SAELens computes relu(x @ W_enc + b_enc) * (pre > threshold), or of topk the k largest,
    then @ W_dec + b_dec.
    """
    made = exported(run, tmp_path, layers=[1, 4, 5], run__export_dtype=dtype)
    wanted, outputs = dense(made)
    tolerance = FLOAT32 if dtype == "float32" else BFLOAT16
    for source, layer in enumerate([1, 4, 5]):
        folder = made.folder / f"layer_{layer}"
        described = json.loads((folder / "cfg.json").read_text())
        stored = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
        architecture = {"relu": "standard", "topk": "topk"}.get(run.activation, "jumprelu")
        assert described["architecture"] == architecture
        assert (described["d_in"], described["d_sae"]) == stored["W_enc"].shape == (run.width, run.features)
        assert described["apply_b_dec_to_input"] is False
        assert described["normalize_activations"] == "none"
        assert described["metadata"]["hook_name"] == f"blocks.{layer}.hook_resid_post"
        assert described["metadata"]["sae_lens_version"] == "6.0.0"
        assert set(stored) == {"W_enc", "W_dec", "b_enc", "b_dec"} | (
            {"threshold"} if architecture == "jumprelu" else set()
        )
        pre_BF = made.inputs()[0][:, source].double() @ stored["W_enc"] + stored["b_enc"]
        found_BF = pre_BF.relu() * (pre_BF > stored.get("threshold", torch.zeros(())))
        if architecture == "topk":
            kept = torch.topk(pre_BF, described["k"])
            found_BF = torch.zeros_like(pre_BF).scatter_(1, kept.indices, kept.values.relu())
        both = (found_BF > 0) & (wanted[source] > 0)
        assert float((both ^ (wanted[source] > 0)).float().mean()) <= (0 if dtype == "float32" else 0.02)
        assert relative(found_BF[both], wanted[source][both]) < tolerance
        found_BD = wanted[source] @ stored["W_dec"] + stored["b_dec"]
        assert relative(found_BD, outputs[:, source]) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_switch_is_read_as_it_was_trained(dtype: str, tmp_path: Path) -> None:
    """Sparsely and densely; tokens go to the same experts in narrow files too."""
    made = exported(Run("sae", "switch"), tmp_path, layers=[1, 4, 5], run__export_dtype=dtype)
    wanted, outputs = dense(made)
    loaded, x_BSD = load_autoencoders(made.folder).dictionary, made.inputs()[0]
    found_BSD, counts = reconstruct(loaded, x_BSD.clone())
    assert relative(found_BSD, outputs) < (FLOAT32 if dtype == "float32" else BFLOAT16)
    for source, (wanted_BF, dense_BF) in enumerate(zip(wanted, loaded.encode(x_BSD.transpose(0, 1)), strict=True)):
        assert int(counts[source].sum()) == pytest.approx(int((wanted_BF > 0).sum()), rel=0.02)
        selected = loaded.encode_positions(source, x_BSD[:, source])
        assert torch.equal(torch.stack(selected[:2], 1), (dense_BF > 0).nonzero())
        torch.testing.assert_close(dense_BF[dense_BF > 0], selected[2])
        experts_B, size = dense_BF.argmax(1) // (made.run.features // 4), made.run.features // 4
        assert all(int(f) // size == int(experts_B[b]) for b, f in (dense_BF > 0).nonzero())
    assert len(torch.unique(loaded.encode(x_BSD.transpose(0, 1)).argmax(2) // 4)) > 1
    assert describe(loaded).startswith("sparse autoencoders, 3 layers of 16 features, topk of one of 4 experts")
    with pytest.raises(InputError, match="the dictionary is a switch"):
        latent_target(loaded, 1, 2, 3)
    with pytest.raises(InputError, match="has a router"):
        loaded.to_safetensors(tmp_path / "native")
    said = made.folder / "layer_4" / "cfg.json"
    said.write_text(said.read_text().replace('"k": 1', '"k": 5'))
    with pytest.raises(FileFormatError, match="k is 5 of 16 features that 4 experts share"):
        load_autoencoders(made.folder)


@pytest.mark.parametrize("activation", ["batch_topk", "topk"])
def test_l0_of_every_layer_is_that_of_the_training_rule(activation: str, tmp_path: Path) -> None:
    made = exported(Run("clt", activation), tmp_path, run__export_dtype="float32")
    kept = [len(entries.feature) for entries in made.selection().entries]
    assert [int((one > 0).sum()) for one in encoded(made)] == kept


def test_a_large_mean_does_not_spoil_bfloat16(tmp_path: Path) -> None:
    """Rounding W_enc by 1/256 shifts pre-activations by mean/256 a dimension, unless the bias is folded for the rounded one."""
    made = exported(Run("skip", "relu"), tmp_path)
    far = 1000.0 * torch.randn(LAYERS, made.run.width, generator=torch.Generator().manual_seed(1))
    content = tensors(made.state)
    content["mean_x_SD"].copy_(far)
    moved = checkpoint.read(checkpoint.save(made.state, tmp_path / "moved", {}, FeatureRanks()))
    for source in range(LAYERS):
        layer = folded(moved, made.config, None, source)
        at_mean = layer.encoder_FD.double() @ far[source].double() + layer.encoder_bias_F.double()
        assert relative(at_mean, made.state.dictionary.b_enc[source]) < 1e-3
        assert layer.skip_DD is not None
        output = layer.skip_DD.double() @ far[source].double() + layer.decoder_bias_D.double()
        space = made.state.normalisation
        wanted = made.state.dictionary.b_dec[source] / space.scale_y_S[source] + space.mean_y_SD[source]
        assert relative(output, wanted) < 1e-3


def test_skip_is_applied_as_circuit_tracer_applies_it(tmp_path: Path) -> None:
    """Its per-layer loader computes x @ W_skip.T."""
    made = exported(Run("skip", "relu"), tmp_path, run__export_dtype="float32")
    stored = load_file(made.folder / "layer_1.safetensors")["W_skip"]
    space, model = made.state.normalisation, made.state.dictionary
    assert model.W_skip is not None
    expected = model.W_skip[1] * space.scale_x_S[1] / space.scale_y_S[1]
    torch.testing.assert_close(stored, expected)
    assert not torch.allclose(stored, stored.T)


@pytest.mark.parametrize("run", [Run("clt", "batch_topk"), Run("plt", "relu"), Run("skip", "jumprelu")], ids=str)
def test_layouts_are_circuit_tracers(run: Run, tmp_path: Path) -> None:
    made = exported(run, tmp_path)
    threshold = run.activation != "relu"
    for layer in range(LAYERS):
        if run.kind == "clt":
            shapes = {name: tuple(t.shape) for name, t in load_file(made.folder / f"W_enc_{layer}.safetensors").items()}
            assert shapes == {
                f"W_enc_{layer}": (16, 6), f"b_enc_{layer}": (16,), f"b_dec_{layer}": (6,), f"threshold_{layer}": (16,),
            }  # fmt: skip
            decoder = load_file(made.folder / f"W_dec_{layer}.safetensors")
            assert {name: tuple(t.shape) for name, t in decoder.items()} == {f"W_dec_{layer}": (16, LAYERS - layer, 6)}
            continue
        shapes = {name: tuple(t.shape) for name, t in load_file(made.folder / f"layer_{layer}.safetensors").items()}
        expected: dict[str, tuple[int, ...]] = {"W_enc": (16, 6), "W_dec": (16, 6), "b_enc": (16,), "b_dec": (6,)}
        expected |= {"activation_function.threshold": (16,)} if threshold else {}
        expected |= {"W_skip": (6, 6)} if run.kind == "skip" else {}
        assert shapes == expected
    loaded, config = load_transcoder_from_hub(made.folder)
    assert config["model_name"] == "org/model"
    assert (loaded.feature_input_hook, loaded.feature_output_hook) == ("hook_resid_mid", "hook_mlp_out")
    assert loaded.skip_connection is (run.kind == "skip")


def test_some_layers_only_do_not_pass_for_the_first_ones(tmp_path: Path) -> None:
    made = exported(Run("plt", "topk"), tmp_path, layers=[2, 5, 6])
    assert sorted(path.name for path in made.folder.glob("*.safetensors")) == [
        "layer_2.safetensors", "layer_5.safetensors", "layer_6.safetensors",
    ]  # fmt: skip
    assert made.loaded().layers == (2, 5, 6)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_topk_is_said_where_a_reader_looks_for_it(kind: str, tmp_path: Path) -> None:
    """circuit-tracer's tag takes k from config.yaml, and refuses a tensor for it; for cross-layer files it knows none."""
    made = exported(Run(kind, "topk"), tmp_path)
    said = read_yaml(made.folder / "config.yaml")
    known = {"clt": "topk_cross_layer_transcoder", "plt": "transcoder_set"}[kind]
    assert (said["model_kind"], said["activation"], said["k"]) == (known, "topk", 1)
    tensors = {name for path in made.folder.glob("*.safetensors") for name in load_file(path)}
    assert not any(name.startswith(("k", "threshold", "activation")) for name in tensors)
    hooks = {key: value for key, value in said.items() if key.endswith("_hook")}
    write_config(hooks, made.folder)  # each file says it too
    function = made.loaded().activation(0)
    assert isinstance(function, TopK)
    assert (function.k, function.nonnegative) == (1, True)


@pytest.mark.parametrize("run", [Run("clt", "batch_topk"), Run("skip", "jumprelu")], ids=str)
def test_an_export_is_the_same_whatever_the_ranks_that_trained(run: Run, tmp_path: Path) -> None:
    made = exported(run, tmp_path)
    expected = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    # the same rows in the files of two ranks
    source = made.checkpoint.folder
    for layer in range(LAYERS):
        whole = source / f"layer-{layer:03d}.rank-0-of-1.safetensors"
        content = load_file(whole)
        for rank, rows in enumerate((slice(0, 8), slice(8, 16))):
            part = {name: tensor[rows].clone() for name, tensor in content.items()}
            name = f"layer-{layer:03d}.rank-{rank}-of-2.safetensors"
            checkpoint._write_tensors(part, source / name, made.checkpoint.content)
        whole.unlink()
    export(made.checkpoint, made.config, made.levels, made.folder, "org/model", range(LAYERS))
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == expected


def test_a_dictionary_trained_in_bfloat16_exports_its_weights(tmp_path: Path) -> None:
    made = exported(replace(Run("clt", "batch_topk"), dtype="bfloat16"), tmp_path, run__export_dtype="float32")
    wanted, outputs = dense(made)
    for mine, one in zip(encoded(made), wanted, strict=True):
        assert torch.equal(mine > 0, one > 0)
        assert relative(mine, one) < FLOAT32
    assert relative(decoded(made, wanted), outputs) < FLOAT32


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made = exported(Run("clt", "relu"), tmp_path)
    made.state.normalisation.scale_y_S[2] = 0.0
    made.state.step += 1
    broken = checkpoint.read(checkpoint.save(made.state, tmp_path / "broken", {}, FeatureRanks()))
    with pytest.raises(NumericalError, match="decoder_FTD of source layer 0 is not finite"):
        export(broken, made.config, None, tmp_path / "out", "org/model", range(LAYERS))


def test_a_half_written_export_has_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = exported(Run("clt", "relu"), tmp_path)
    assert (made.folder / "config.yaml").is_file()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("circuit_tracer.transcoders.formats.writing.write_tensors", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        export(made.checkpoint, made.config, None, made.folder, "org/model", range(LAYERS))
    assert not (made.folder / "config.yaml").exists()


def test_a_folder_of_another_dictionary_is_not_mixed(tmp_path: Path) -> None:
    made = exported(Run("clt", "relu"), tmp_path / "one")
    other = exported(Run("plt", "relu"), tmp_path / "two")
    with pytest.raises(InputError, match="already holds the files of another transcoder"):
        export(made.checkpoint, made.config, None, other.folder, "org/model", range(LAYERS))
