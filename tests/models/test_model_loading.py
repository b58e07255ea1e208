"""Loading from a folder, a GGUF file or the hub; and what happens when nothing usable is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import FileFormatError, InputError, UnsupportedModelError
from circuit_tracer.models.loading import load_language_model, resolve_device, resolve_dtype
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder

CPU = torch.device("cpu")
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(43))]


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer, as `save_pretrained` leaves it."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_folder_is_loaded_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    model, tokenizer = load_language_model(folder, CPU, resolve_dtype(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {resolve_dtype(dtype)}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("w3 w5", add_special_tokens=False).input_ids == [7, 9]


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_a_folder_is_traced_from_text(folder: Path, as_text: bool) -> None:
    name = str(folder) if as_text else folder
    transcoders = tiny_transcoder(dtype=torch.float32)
    model = ReplacementModel.from_pretrained_and_transcoders(name, transcoders, device="cpu", dtype="fp32")
    graph = attribute("w1 w2 w3", model, attribution_targets=["w4"])
    assert graph.input_tokens.tolist() == [1, 5, 6, 7]
    assert graph.token_strings == ["<s>", "w1", "w2", "w3"]
    assert graph.residual is not None
    assert graph.residual <= 1e-5


def test_a_relative_path_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in (folder.name, f"./{folder.name}"):
        model, _ = load_language_model(name, CPU, torch.float32)
        assert model.config.model_type == "llama"


def test_weights_are_the_same_after_a_round_trip(folder: Path) -> None:
    model, _ = load_language_model(folder, CPU, torch.float32)
    expected = tiny_model("llama", torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such/folder", "~/no/such/folder"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(InputError, match="path does not exist"):
        load_language_model(name, CPU, torch.float32)


def test_a_gguf_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no GGUF file at .*model\.gguf"):
        load_language_model(tmp_path / "model.gguf", CPU, torch.float32)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"this is no model" * 99], ids=["empty", "cut off", "foreign"])
def test_a_gguf_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises((FileFormatError, InputError), match=r"model\.gguf"):
        load_language_model(path, CPU, torch.float32)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_language_model(tmp_path, CPU, torch.float32)


def test_a_file_that_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"config\.json"):
        load_language_model(path, CPU, torch.float32)


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(InputError, match=r"no language model at 'nobody/no-such-model'.*network"):
        load_language_model("nobody/no-such-model", CPU, torch.float32)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no language model at"):
        load_language_model(folder, CPU, torch.float32)


def test_weights_that_are_cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_language_model(folder, CPU, torch.float32)


def test_weights_that_are_missing_are_never_drawn_at_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"lacks 1 weights, 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_language_model(folder, CPU, torch.float32)


def test_a_configuration_of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(FileFormatError, match=r"lacks 9 weights, 'model\.layers\.3"):
        load_language_model(folder, CPU, torch.float32)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 25}))
    with pytest.raises(FileFormatError, match=r"cannot be read|another shape"):
        load_language_model(folder, CPU, torch.float32)


def test_a_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{ nonsense")
    with pytest.raises((FileFormatError, InputError), match=str(folder)):
        load_language_model(folder, CPU, torch.float32)


def test_a_model_type_that_transformers_does_not_know(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "florp"}))
    with pytest.raises(InputError, match=r"transformers cannot load.*florp"):
        load_language_model(folder, CPU, torch.float32)


def test_a_model_type_that_is_not_in_the_table(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=47, hidden_size=16, num_hidden_layers=3, state_size=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'mamba' .* cannot be traced: it has layers with a state"):
        ReplacementModel.from_pretrained_and_transcoders(tmp_path, tiny_transcoder(), device="cpu")


def test_a_tokenizer_that_is_missing(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises((FileFormatError, InputError), match=str(folder)):
        load_language_model(folder, CPU, torch.float32)


def test_names_of_dtypes_and_devices() -> None:
    assert resolve_dtype("bf16") is torch.bfloat16
    assert resolve_dtype(torch.float64) is torch.float64
    with pytest.raises(InputError, match=r"'int3' is unknown.*float32"):
        resolve_dtype("int3")
    assert resolve_device("cpu") == CPU
    with pytest.raises(InputError, match=r"'tpu9' is unknown.*cpu, cuda"):
        resolve_device("tpu9")


def test_backends_of_circuit_tracer_are_accepted_and_others_are_not() -> None:
    for backend in ("transformerlens", "nnsight"):
        model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama", backend)  # type: ignore[arg-type]
        assert model.backend == backend
    with pytest.raises(InputError, match="backend is 'jax'; expected"):
        ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama", "jax")  # type: ignore[arg-type]


def test_a_model_from_its_configuration() -> None:
    config = tiny_model("llama").config
    model = ReplacementModel.from_config(config, tiny_transcoder(dtype=torch.float32))
    assert model.cfg.dtype == "float32"
    with pytest.raises(InputError, match=r"unknown arguments.*speed"):
        ReplacementModel.from_config(config, tiny_transcoder(dtype=torch.float32), speed=11)
