"""Where a model is, and what can go wrong there: names, configurations, and the errors of the libraries that read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from circuit_tracer.errors import (
    CircuitTracerError,
    FileFormatError,
    InputError,
    ResourceError,
    UnsupportedModelError,
    first_line,
)
from circuit_tracer.files import near_names, read_json
from circuit_tracer.hub_connection import ask_hub, why_offline
from circuit_tracer.models.config import one_of

# several times what the largest models have: beyond it a number is a mistake, and building such a model takes all memory
_LARGEST = {
    "num_hidden_layers": 1000,
    "hidden_size": 1 << 17,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 23,
}
ADAPTER = "adapter_config.json"
_WHERE_FROM = (
    "Give a Hugging Face id (with network access or a filled cache), a folder with config.json, or a .gguf file."
)


class Source(NamedTuple):
    """What from_pretrained takes: a folder or hub id, and further arguments (a GGUF file's name, a revision)."""

    name: str
    options: dict[str, Any]


def pretrained_source(model_name: str | Path, revision: str | None = None) -> Source:
    """What from_pretrained takes of a name: a GGUF file is named by its folder and file name, `@` sets off a revision."""
    path, text = Path(model_name).expanduser(), str(model_name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file at {path}. {near_names(path) or 'Check the path.'}")
        return Source(str(path.parent), {"gguf_file": path.name})
    if not text or os.path.exists(path):
        if revision is not None:
            raise InputError(f"revision {revision!r} names a commit on the hub, but {path} is a folder; leave it out")
        if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
            raise InputError(f"the folder {path} holds no config.json, so it is not a transformers model")
        return Source(str(path), {})
    if path.is_absolute() or text.startswith((".", "~")):
        raise InputError(
            f"no language model at {path}: the path does not exist. {near_names(path, folders=True) or 'Check it.'}"
        )
    ask_hub()
    name, at, named = text.partition("@")
    if at and (not named or revision not in (None, named)):
        raise InputError(
            f"{text!r} names the revision {named!r}" + (f", and revision= {revision!r}" if revision else "")
        )
    revision = named or revision
    return Source(name, {} if revision is None else {"revision": revision})


def read_configuration(source: Source, where: dict[str, Any]) -> Any:
    """The transformers configuration of a model, its file checked first."""
    from transformers import AutoConfig

    folder = Path(source.name)
    if folder.is_dir() and "gguf_file" not in source.options and "subfolder" not in where:
        raw = read_json(folder / "config.json")
        if not isinstance(raw, dict):
            raise FileFormatError(f"{folder / 'config.json'} holds a {type(raw).__name__}; a JSON object is expected")
    config = AutoConfig.from_pretrained(source.name, **where, **source.options, trust_remote_code=False)
    sizes = config.get_text_config()
    for name, largest in _LARGEST.items():
        if isinstance(size := one_of(sizes, name), int) and size > largest:
            raise FileFormatError(
                f"the configuration of {source.name!r} says {name}={size}; at most {largest} is believable"
            )
    return config


def adapter_of(source: Source, where: dict[str, Any]) -> dict[str, Any] | None:
    """What the adapter_config.json of a source says, if it has one; then its config.json, if any, is not the model's."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if "gguf_file" in source.options:
        return None
    path = find_adapter_config_file(source.name, **where, **source.options)
    return None if path is None else read_json(path)


@contextmanager
def library_errors(model_name: str | Path, what: str = "language model", advice: str = _WHERE_FROM) -> Iterator[None]:
    """Errors of transformers, tokenizers and what they use become ours, with their first line."""
    name = repr(str(model_name))
    try:
        yield
    except CircuitTracerError:
        raise
    except ImportError as error:
        raise InputError(f"the {what} at {name} cannot be loaded: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"no {what} at {name}: {_not_downloaded(error) or first_line(error)} {advice}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"too little memory for the {what} at {name}: {first_line(error)}. Try dtype='bfloat16'."
        ) from error
    except Exception as error:
        raise _translated(error, name, what, advice) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of tokenizers' or safetensors' Rust
            raise
        raise FileFormatError(f"the {what} at {name} cannot be read: {first_line(error)}") from error


def _not_downloaded(error: BaseException | None) -> str | None:
    """What to say when a file was looked for in the hub's cache alone; None for other errors."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled) and (why := why_offline()):
            return f"it has not been downloaded, and {why}."
        error = error.__cause__ or error.__context__
    return None


def _translated(error: Exception, name: str, what: str, advice: str) -> CircuitTracerError:
    said = str(error)
    if "trust_remote_code" in said:
        return UnsupportedModelError(
            f"the {what} at {name} brings its own code, which is not run here. Use a version that transformers has a class for."
        )
    if "unexpected keyword argument" in said:
        return InputError(
            f"from_pretrained does not know an argument that was passed on for {name}: {first_line(error)}"
        )
    if "Unrecognized" in said or "does not recognize" in said or "not supported" in said:
        return InputError(f"transformers cannot load {name}: {first_line(error)}")
    said = "" if advice is _WHERE_FROM else f" {advice}"
    return FileFormatError(f"the {what} at {name} cannot be read: {first_line(error)}{said}")


def public_name(name: str) -> str:
    """A hub name as it is, of a local path only its last part: a report is published, and folders are nobody's business."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name
