"""Load any causal LM that transformers loads: a hub id, a folder, an adapter's folder, or a GGUF file.

A model is loaded whole, in plain numbers, on one device: adapters are merged, quantised weights de-quantised, and it is said.
No code of a repository is run. Whatever transformers or tokenizers raise about such a model becomes an error of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import FileFormatError, InputError, first_line, warn
from circuit_tracer.garbage import collection_put_off
from circuit_tracer.models.adapted import dequantised, dequantised_copy, load_dequantised, merged
from circuit_tracer.models.architectures import in_table
from circuit_tracer.models.likeness import unlike
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.plain import require_causal_lm
from circuit_tracer.models.sources import Source, adapter_of, library_errors, pretrained_source, read_configuration
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.text_part import auto_class, text_part
from circuit_tracer.models.tokenization import TOKENIZER_ADVICE, check_tokenizer, special_words
from circuit_tracer.progress import doing

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
    "fp64": torch.float64,
}
# arguments of from_pretrained that say where files are, for configuration and tokenizer too
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OFFLOADING = ("offload_buffers", "offload_folder", "offload_state_dict")
_WHERE_FROM = (
    "Give a Hugging Face id (with network access or a filled cache), a folder with config.json, or a .gguf file."
)
_OWN_ATTENTION = ("eager", "sdpa")
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or from its name (float32, fp32, bf16, ...)."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(device: torch.device | str | int | None) -> torch.device:
    """The device asked for, or the best one there is (cuda, mps, cpu)."""
    if device is not None:
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"device {device!r} is unknown; use cpu, cuda, cuda:1, mps, ...") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def present(device: torch.device) -> torch.device:
    """The device, proved to be there; InputError otherwise."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{device}' cannot be used: {first_line(error)}. Try cpu, cuda, cuda:0 or mps"
        ) from error
    return device


def place(
    device: torch.device | str | int | None, dtype: torch.dtype | str, options: dict[str, Any]
) -> tuple[torch.device, torch.dtype, dict[str, Any]]:
    """(device, dtype, what is left of from_pretrained's `options`): `torch_dtype` and `device_map` are other names for them.

    Raises InputError for a device_map of several devices, or with layers on disk.
    """
    left = {name: value for name, value in options.items() if name not in _OFFLOADING}
    chosen = left.pop("torch_dtype", None)
    mapped = left.pop("device_map", None)
    if mapped is not None:
        devices = sorted({str(one) for one in mapped.values()}) if isinstance(mapped, dict) else [str(mapped)]
        if len(devices) != 1 or devices[0] in ("disk", "meta"):
            raise InputError(
                f"device_map puts the model on {', '.join(devices) or 'no device'}: a model is traced on one device, with all "
                "its weights there. Use device=... instead, with dtype='bfloat16' if memory is short."
            )
        one = {"auto": None, "balanced": None, "balanced_low_0": None, "sequential": None}.get(devices[0], devices[0])
        one = f"cuda:{one}" if one is not None and one.isdigit() else one
        if device is not None and one is not None and torch.device(device) != resolve_device(one):
            raise InputError(f"device is {device!s} and device_map says {one}; give one of them")
        device = one if device is None else device
    return resolve_device(device), resolve_dtype(dtype if chosen in (None, "auto") else chosen), left


@collection_put_off()
@plain_torch()
def load_language_model(
    model_name: str | Path, device: torch.device, dtype: torch.dtype, tokenizer: Any = None, **options: Any
) -> tuple[Any, Any]:
    """(model, tokenizer) in evaluation mode, without gradients. Further options go to `from_pretrained`.

    model_name: a hub id (also `org/name@revision`), a folder of a model or of a peft adapter, or a GGUF file. tokenizer: one
    that is loaded already, or where it is; None for the model's own.

    Raises InputError when nothing is there or an option is unknown, FileFormatError when it cannot be read, and
    UnsupportedModelError for what would run code of its own or is quantised in a way that cannot be undone.
    """
    if options.pop("trust_remote_code", False):
        raise InputError(
            "trust_remote_code: code that comes with a model is not run here; use transformers' own class of it"
        )
    if options.get("attn_implementation", "eager") not in _OWN_ATTENTION:
        del options["attn_implementation"]  # a trace brings its own attention
    source = pretrained_source(model_name, options.pop("revision", None))
    with library_errors(model_name), doing("loading the model"):
        model = _load_model(source, device, dtype, options)
    if tokenizer is None:
        tokenizer = read_tokenizer(model_name, source, {name: options[name] for name in _WHERE if name in options})
    return model, load_tokenizer(tokenizer, model)


def bind_loaded(model: Any, tokenizer: Any, model_name: str | None = None) -> ModelParts:
    """The parts of a transformers causal LM that is loaded already, checked against its tokenizer (None: it has none).

    Of a model that also sees, those of the language model; of a quantised one, of a de-quantised copy, with a warning. One in
    training mode is switched to evaluation, with a warning. The name is by default the configuration's.
    """
    require_causal_lm(model)
    if any(module.training for module in model.modules()):
        warn("the model was in training mode, in which dropout is active; it is now in eval()")
        model.eval()
    name = model_name or model.config._name_or_path or model.config.model_type
    part = text_part(dequantised_copy(model))
    if not in_table(part.config):
        raise unlike(part)
    parts = bind(part, name)
    check_tokenizer(tokenizer, len(parts.unembed.weight))
    return parts


def load_tokenizer(given: Any, model: Any) -> Any:
    """A tokenizer that is loaded already, or the one of a hub id or folder, checked against the model."""
    tokenizer = read_tokenizer(given, pretrained_source(given)) if isinstance(given, str | Path) else given
    check_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0])
    return tokenizer


def read_tokenizer(name: str | Path, source: Source, where: dict[str, Any] | None = None) -> Any:
    """The tokenizer of a source. Raises InputError and FileFormatError."""
    from transformers import AutoTokenizer

    with library_errors(name, "tokenizer of the model", TOKENIZER_ADVICE), doing("loading the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, **(where or {}), **source.options, trust_remote_code=False
        )
        if not tokenizer.get_vocab().keys() - special_words(tokenizer):
            raise InputError(
                f"{str(name)!r} holds no tokenizer (tokenizer.json, or an older one's files). {TOKENIZER_ADVICE}"
            )
    return tokenizer


def _load_model(source: Source, device: torch.device, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    where = {name: options[name] for name in _WHERE if name in options}
    if (adapter := adapter_of(source, where)) is not None:
        return merged(source, adapter, lambda base: _load_model(pretrained_source(base), device, dtype, {**options}))
    # a GGUF file is de-quantised in float32, so that no rounding is added before the cast
    gguf = "gguf_file" in source.options
    config = options.pop("config", None) or read_configuration(source, where)
    options = {**options, **source.options, "dtype": torch.float32 if gguf else dtype, "trust_remote_code": False}
    options |= load_dequantised(config, options)
    loaded, report = auto_class(config).from_pretrained(source.name, config=config, output_loading_info=True, **options)
    _require_all_weights(source, loaded, report)
    model = text_part(dequantised(loaded))
    return model.to(dtype).to(device).eval().requires_grad_(False)


def _require_all_weights(source: Source, model: Any, report: Any) -> None:
    """Every weight of the model is in its files, and every weight in its files that belongs to a layer is the model's."""
    if absent := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise FileFormatError(
            f"the model at {source.name!r} lacks {len(absent)} weights, {absent[0]!r} first, or holds them in another "
            "shape; transformers would draw them at random. Download it again, or correct its config.json."
        )
    unused = sorted(key for key in report["unexpected_keys"] if not key.endswith(_BUFFERS))
    modules = dict(model.named_modules())
    within = [key for key in unused if _of_a_layer(key, modules)]
    if within:
        raise FileFormatError(
            f"the model at {source.name!r} holds {len(within)} weights of its layers that its configuration has no place for, "
            f"{within[0]!r} first; transformers would leave them out. If they are an adapter's, merge it (peft: "
            "merge_and_unload); else correct config.json."
        )
    if unused:
        warn(f"{source.name}: {len(unused)} weights are no part of the language model, {unused[0]!r} first")


def _of_a_layer(key: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a weight's name lies within a layer of the model, or within one that the model has not."""
    while key and key not in modules:
        key = key.rpartition(".")[0]
    return isinstance(modules[key], nn.ModuleList) or any(part.isdigit() for part in key.split("."))
