"""Models as people have them: loaded already, adapted, quantised, seeing, placed by a device_map, at a revision, damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, UnsupportedModelError
from circuit_tracer.models.loading import load_language_model, place
from circuit_tracer.models.outline import outline
from circuit_tracer.models.sources import pretrained_source
from circuit_tracer.models.text_part import text_part
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders.loading import save_transcoders
from tests.models.test_model_loading import save_tokenizer
from tests.support.tiny import SIZES, tiny_model, tiny_transcoder

CPU = torch.device("cpu")
IDS = [3, 17, 5, 17, 40, 8]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, and transcoders of it in `transcoders`."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama", torch.float32).save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    save_transcoders(tiny_transcoder(dtype=torch.float32), folder / "transcoders")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    for path in (saved / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def open_saved(saved: Path, **options: Any) -> ReplacementModel:
    return ReplacementModel.from_pretrained(saved / "model", saved / "transcoders", **{"device": "cpu", **options})


# what is loaded already


def test_a_model_and_a_tokenizer_that_are_loaded_already_are_used(saved: Path) -> None:
    model = tiny_model("llama", torch.float32, seed=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved / "model")
    found = open_saved(saved, hf_model=model, tokenizer=tokenizer)
    assert found.hf_model is model
    assert found.tokenizer is tokenizer
    assert open_saved(saved, hf_model=model).tokenizer("w3", add_special_tokens=False).input_ids == [7]
    assert open_saved(saved, tokenizer=saved / "model").tokenizer("w3", add_special_tokens=False).input_ids == [7]
    with pytest.raises(InputError, match=r"loaded already: nonsense, revision"):
        open_saved(saved, hf_model=model, nonsense=1, revision="main")
    with pytest.raises(InputError, match="hf_model is on cpu, and device is meta"):
        open_saved(saved, hf_model=model, device="meta")


@pytest.mark.slow("takes 1.4 s")
def test_other_names_for_dtype_and_device(saved: Path) -> None:
    assert open_saved(saved, torch_dtype=torch.bfloat16).cfg.dtype == "bfloat16"
    assert open_saved(saved, torch_dtype="bfloat16").cfg.dtype == "bfloat16"
    assert open_saved(saved, attn_implementation="flash_attention_2").hf_model.config._attn_implementation == "sdpa"
    assert open_saved(saved, device=None, device_map={"": "cpu"}, offload_folder="unused").device == CPU
    config = transformers.LlamaConfig(**SIZES, name_or_path=str(saved / "model"))
    made = ReplacementModel.from_config(config, tiny_transcoder(dtype=torch.float32), torch_dtype="bfloat16")
    assert made.cfg.dtype == "bfloat16"
    assert made.tokenizer("w3", add_special_tokens=False).input_ids == [7]


@pytest.mark.parametrize(
    ("device", "device_map", "expected"),
    [
        (None, "cpu", "cpu"), (None, {"": "cpu"}, "cpu"), (None, {"model": "cuda:1", "lm_head": "cuda:1"}, "cuda:1"),
        (None, {"": 1}, "cuda:1"), (None, 0, "cuda:0"), ("cpu", "auto", "cpu"), ("cpu", "cpu", "cpu"),
    ],
)  # fmt: skip
def test_a_device_map_of_one_device_is_that_device(device: str | None, device_map: Any, expected: str) -> None:
    assert place(device, "float32", {"device_map": device_map}) == (torch.device(expected), torch.float32, {})


@pytest.mark.parametrize(
    ("device_map", "says"),
    [
        ({"model": "cpu", "lm_head": "disk"}, "cpu, disk"), ({"model": 0, "lm_head": 1}, "0, 1"), ({}, "no device"),
        ("disk", "disk"), ("nowhere", "unknown"), ({"": "cuda:0"}, "give one of them"),
    ],
    ids=str,
)  # fmt: skip
def test_other_device_maps_are_refused(device_map: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        place("cpu", "float32", {"device_map": device_map})


# adapters and quantised weights


def test_the_folder_of_an_adapter_needs_peft_or_is_merged(saved: Path, tmp_path: Path) -> None:
    described = {"base_model_name_or_path": str(saved / "model"), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    described |= {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, 16, generator=generator), torch.randn(8, 2, generator=generator)
    names = {"lora_A": low, "lora_B": high}
    where = "base_model.model.model.layers.{}.self_attn.v_proj.{}.weight"
    changes = {where.format(layer, name): x.clone() for layer in range(3) for name, x in names.items()}
    save_file(changes, tmp_path / "adapter_model.safetensors")
    save_tokenizer(tmp_path)
    assert outline(tmp_path).config.n_layers == 3
    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(
            InputError, match=r"is a peft adapter: install peft, or merge it first \(merge_and_unload\)"
        ):
            load_language_model(tmp_path, CPU, torch.float32)
        return
    with pytest.warns(UserWarning, match="is merged into its base model"):
        model, _ = load_language_model(tmp_path, CPU, torch.float32)
    base = tiny_model("llama", torch.float32)
    for layer, before in zip(model.model.layers, base.model.layers, strict=True):
        torch.testing.assert_close(layer.self_attn.v_proj.weight, before.self_attn.v_proj.weight + 2 * high @ low)


def test_an_adapter_that_names_no_base_is_refused(folder: Path) -> None:
    for text in ("[]", "{}", '{"base_model_name_or_path": 5}', "{nonsense"):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"does not name its base model|adapter_config"):
            load_language_model(folder, CPU, torch.float32)


@pytest.mark.slow("takes 1.3 s")
def test_weights_of_an_adapter_in_a_models_file_are_never_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in (
        "model.layers.1.self_attn.v_proj.lora_A.weight",
        "model.layers.1.self_attn.o_proj.bias",
        "model.layers.3.x",
    ):
        save_file({**weights, name: torch.zeros(16)}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(FileFormatError, match=f"no place for, {name!r} first"):
            load_language_model(folder, CPU, torch.float32)
    save_file({**weights, "v_head.weight": torch.zeros(16)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"no part of the language model, 'v_head\.weight' first"):
        load_language_model(folder, CPU, torch.float32)


class Rounded(Tensor):
    """A weight that stands for other numbers, as torchao's do."""

    def __deepcopy__(self, memo: Any) -> Rounded:
        return self.clone().as_subclass(Rounded)

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor).mul(64).round() / 64


def test_weights_that_stand_for_others_are_read_in_a_copy_and_it_is_said() -> None:
    model = tiny_model("llama")
    projections = [layer.self_attn.v_proj for layer in model.model.layers]
    for projection in projections:
        projection.weight = nn.Parameter(projection.weight.data.as_subclass(Rounded), requires_grad=False)
    with pytest.warns(UserWarning, match=r"quantised \(torchao\); its weights were de-quantised"):
        found = ReplacementModel.from_model(model, tiny_transcoder(), None, "x")
    assert all(type(projection.weight.data) is Rounded for projection in projections)
    assert torch.equal(found.hf_model.model.layers[1].self_attn.v_proj.weight * 64 % 1, torch.zeros(8, 16).double())
    residual = attribute(IDS, found).residual
    assert residual is not None
    assert residual <= 1e-10


# models that also see


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"image_size": 28, "patch_size": 14}


def seeing(kind: str) -> Any:
    """A model of an image and text, every weight drawn at random."""
    text = {**SIZES, "head_dim": 6}
    if kind == "gemma3":
        config: Any = transformers.Gemma3Config(
            text_config=text, vision_config={**VISION, **IMAGES}, mm_tokens_per_image=4
        )
        model: Any = transformers.Gemma3ForConditionalGeneration(config)
    elif kind == "qwen2_vl":  # transformers has no causal LM of its text configuration
        text = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}}
        seen = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 14}
        model = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(text_config=text, vision_config=seen, tie_word_embeddings=False)
        )
    else:
        text = transformers.LlamaConfig(**text)
        vision = transformers.CLIPVisionConfig(**VISION, **IMAGES, projection_dim=16)
        both = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=46)
        model = transformers.LlavaForConditionalGeneration(both)
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
    return model


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_vl"])
def test_the_text_part_of_a_model_that_sees_is_traced(kind: str) -> None:
    model = seeing(kind)
    found = ReplacementModel.from_model(model, tiny_transcoder(), None, "x")
    language = model.model.language_model
    assert found.hf_model.get_input_embeddings().weight is language.embed_tokens.weight
    assert found.hf_model.get_output_embeddings() is model.lm_head
    own = model(input_ids=torch.tensor([IDS])).logits
    torch.testing.assert_close(found.hf_model(input_ids=torch.tensor([IDS])).logits, own)
    graph = attribute(IDS, found)
    assert graph.residual is not None
    assert graph.residual <= 1e-10


class Rescaled(transformers.Qwen2VLForConditionalGeneration):
    """Does more to its logits than its head."""

    def forward(self, *given: Any, **named: Any) -> Any:
        output = super().forward(*given, **named)
        return replace(output, logits=output.logits / 2)


def test_a_model_that_does_more_than_its_two_parts_is_refused() -> None:
    model = Rescaled(seeing("qwen2_vl").config).eval()
    with pytest.raises(UnsupportedModelError, match="Rescaled makes its logits of more than its language model"):
        text_part(model)


def test_text_of_a_model_that_sees_is_continued() -> None:
    model = seeing("qwen2_vl")
    ids = torch.tensor([IDS])
    options: Any = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(text_part(model).generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_vl"])
def test_a_folder_of_a_model_that_sees_is_loaded(kind: str, tmp_path: Path) -> None:
    model = seeing(kind)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found, _ = load_language_model(tmp_path, CPU, torch.float64)
    assert found.config.model_type == {"gemma3": "gemma3_text", "llava": "llama", "qwen2_vl": "qwen2_vl_text"}[kind]
    ids = torch.tensor([IDS])
    torch.testing.assert_close(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert outline(tmp_path).config.d_model == 16


def test_a_model_that_only_reads_is_left_as_it_is() -> None:
    model = tiny_model("gemma3")
    assert text_part(model) is model


# names and revisions


def test_a_revision_of_a_model_is_named_as_that_of_a_dictionary() -> None:
    assert pretrained_source("org/name@step1000") == ("org/name", {"revision": "step1000"})
    assert pretrained_source("org/name", "step1000") == ("org/name", {"revision": "step1000"})
    assert pretrained_source("org/name@x", "x") == ("org/name", {"revision": "x"})
    assert pretrained_source("org/name") == ("org/name", {})
    for name, revision in (("org/name@x", "y"), ("org/name@", None)):
        with pytest.raises(InputError, match="revision"):
            pretrained_source(name, revision)


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(InputError, match=r"names a commit on the hub, but .* is a folder"):
        load_language_model(folder, CPU, torch.float32, revision="main")


def test_a_revision_reaches_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append((name, options.get("revision")))
        raise OSError("offline")

    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    for name, options in (("org/name@v1", {}), ("org/name", {"revision": "v1"})):
        with pytest.raises(InputError, match="no language model at"):
            load_language_model(name, CPU, torch.float32, **options)
        with pytest.raises(InputError, match="no language model at"):
            outline(name, **options)
    assert asked == [("org/name", "v1")] * 4


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    with pytest.raises(InputError, match="code that comes with a model is not run"):
        load_language_model(folder, CPU, torch.float32, trust_remote_code=True)
    change(model_type="mine", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})(folder)
    (folder / "code.py").write_text("raise SystemExit(7)")
    with pytest.raises(UnsupportedModelError, match="brings its own code"):
        load_language_model(folder, CPU, torch.float32)


# damaged folders


def change(**keys: Any) -> Callable[[Path], Any]:
    """Keys of config.json that are set to other values."""
    return edit("config.json", lambda found: found.update(keys))


def edit(name: str, by: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def edited(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        by(found)
        (folder / name).write_text(json.dumps(found))

    return edited


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def shards(content: bytes) -> Callable[[Path], Any]:
    def split(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(content)

    return split


def pickled(content: bytes) -> Callable[[Path], Any]:
    def replaced(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return replaced


class Intruder:
    """A pickle that would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("intruder", "w"))


def without(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{f"{name} {key}": write(name, content)
       for name in ("config.json", "tokenizer.json")
       for key, content in {"empty": b"", "deep": b"[" * 100_000, "list": b"[1]", "nothing": b"{}", "bytes": b"\xff\x00",
                            "number": b"5"}.items()},
    **{f"{key}={value!r}": change(**{key: value})
       for key, value in (("hidden_size", "16"), ("hidden_size", -1), ("hidden_size", 10**30), ("hidden_size", 10**6),
                          ("num_attention_heads", 0), ("num_hidden_layers", 0), ("num_hidden_layers", 10_000),
                          ("num_hidden_layers", 1.5), ("num_hidden_layers", 2), ("vocab_size", None), ("vocab_size", -1),
                          ("model_type", 5), ("model_type", "t5"), ("rope_parameters", "x"), ("hidden_act", "none such"),
                          ("num_key_value_heads", 3), ("head_dim", 0), ("rms_norm_eps", "x"),
                          ("quantization_config", 5), ("quantization_config", {"quant_method": "gptq", "bits": 4}),
                          ("text_config", "x"))},
    "weights without a header": write("model.safetensors", b"\xff" * 7),
    "weights that declare more than there is": write("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
    "a shard that is missing": shards(b'{"weight_map": {"model.norm.weight": "none.safetensors"}}'),
    "a shard outside": shards(b'{"metadata": {}, "weight_map": {"model.norm.weight": "../../x"}}'),
    "an index that is none": shards(b"[1]"),
    "an index that is deep": shards(b"[" * 100_000),
    "a pickle": pickled(pickle.dumps(Intruder())),
    "no pickle": pickled(b"\x80\x02nonsense"),
    "a vocabulary beyond the model": edit("tokenizer.json", lambda found: found["model"]["vocab"].update(w99=99)),
    "a negative token": edit("tokenizer.json", lambda found: found["model"]["vocab"].update(w99=-1)),
    "a tokenizer of no kind": edit("tokenizer.json", lambda found: found["model"].update(type="none such")),
    "an added token beyond": edit("tokenizer.json", lambda found: found.update(added_tokens=[{"id": 2**40}])),
    "no tokenizer": without("token*"),
    "a tokenizer's configuration alone": without("tokenizer.json"),
    "a special token of no kind": edit("tokenizer_config.json", lambda found: found.update(bos_token=5)),
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_an_error_of_ours(
    damage: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    damage(folder)
    with pytest.raises(CircuitTracerError) as caught:
        load_language_model(folder, CPU, torch.float32)
    assert isinstance(caught.value, FileFormatError | InputError | UnsupportedModelError)
    assert str(caught.value)
    assert not (folder / "intruder").exists()


def test_a_folder_without_a_tokenizer_says_what_to_do(folder: Path) -> None:
    without("token*")(folder)
    with pytest.raises((FileFormatError, InputError), match=r"Pass the tokenizer \(tokenizer=\).*from_model"):
        load_language_model(folder, CPU, torch.float32)
    tiny_model("qwen3", torch.float32).save_pretrained(folder)  # transformers makes an empty tokenizer for it
    with pytest.raises(InputError, match=r"holds no tokenizer.*tokenizer="):
        load_language_model(folder, CPU, torch.float32)


@pytest.mark.few
@pytest.mark.parametrize(
    "options",
    [{"no_such_argument": 1}, {"quantization_config": 5}, {"tokenizer": 5}, {"tokenizer": "/no/where"}],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, Any], saved: Path) -> None:
    with pytest.raises((InputError, FileFormatError)):
        load_language_model(saved / "model", CPU, torch.float32, **options)
