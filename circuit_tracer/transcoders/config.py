"""`config.yaml` of a set of transcoders."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files import atomic_write, read_yaml
from circuit_tracer.files.digests import DIGEST, is_sealed, sealed, unsealed
from circuit_tracer.files.tensors import open_tensor_file

CONFIG_NAME = "config.yaml"
NATIVE_FILE = re.compile(r"(layer|W_enc|W_dec)_\d+\.safetensors")  # a layer's weights, as this package writes them

ModelKind = Literal["transcoder_set", "cross_layer_transcoder"]
# What config.yaml calls cross-layer transcoders with TopK. circuit-tracer would run their files as ReLU; a kind that it does
# not know it refuses.
CLT, TOPK_CLT = "cross_layer_transcoder", "topk_cross_layer_transcoder"

# Keys that public sets have, and that change nothing here: pattern -> why.
HARMLESS_KEYS = {
    "*nnsight*": "module paths for circuit-tracer's nnsight; the hooks name the same places",
    "*_location": "the same",
    "*_locations": "the same",
    "*_location_pattern": "the same",
    "*_location_patterns": "the same",
    "feature_hook_mapping": "the same",
    "embed_weight": "the same",
    "unembed_weight": "the same",
    "model_architecture": "the same",
    "description": "a note",
    "license": "a note",
    "neuronpedia_id": "a name elsewhere",
    "neuronpedia_source_set": "a name elsewhere",
}


class TranscoderConfig(BaseModel):
    """The keys this package uses; others are in `HARMLESS_KEYS`, or an error.

    ``transcoders`` lists one file a layer, as `hf://` URIs or paths relative to the config. ``activation`` and ``k``
    say what the weight files do not, ``special_load_fn`` which of Gemma Scope's formats they have. ``input_shift``:
    older EleutherAI transcoders subtract b_dec from their input, or not (input_shift.py). ``l0``: which of a layer's
    dictionaries was taken. ``scan``, ``repo_id``, ``revision``, ``subfolder`` and ``selection`` are derived when loading from a
    hub.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_kind: ModelKind | None = None
    feature_input_hook: str | None = None
    feature_output_hook: str | None = None
    model_name: str | None = None
    transcoders: list[str] | None = None
    activation: Literal["relu", "jump_relu", "topk"] | None = None
    k: Annotated[int, Field(strict=True, gt=0)] | None = None  # strict: `k: yes` is no number
    special_load_fn: Literal["gemma-scope", "gemma-scope-2"] | None = None
    input_shift: bool | None = None
    l0: dict[int, int] | None = None
    scan: str | list[str] | None = None
    repo_id: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    selection: str | None = None


def validate_config(raw: dict[str, Any], source: str) -> TranscoderConfig:
    """The config of ``raw``; FileFormatError naming ``source``, the key, what was found and what is allowed."""
    try:
        return TranscoderConfig.model_validate({key: value for key, value in raw.items() if not _harmless(key)})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}"
            + ("" if each["type"] == "missing" else f", found {shortened(each['input'])}")
            for each in error.errors()
        ).replace("extra inputs are not permitted", "not understood")
        raise FileFormatError(
            f"{source} cannot be used: {problems}. Correct, add or remove these keys; known are "
            f"{', '.join(TranscoderConfig.model_fields)}."
        ) from error


def _harmless(key: Any) -> bool:
    return isinstance(key, str) and any(fnmatchcase(key, pattern) for pattern in HARMLESS_KEYS)


def folder_config(folder: Path) -> dict[str, Any]:
    """All keys of config.yaml in ``folder``; empty if there is none."""
    path = folder / CONFIG_NAME
    return read_config(path) if path.is_file() else {}


def config_source(folder: Path) -> str:
    """What says how the files of ``folder`` are meant, for messages: its config.yaml, or, if it has none, the caller."""
    path = folder / CONFIG_NAME
    return str(path) if path.is_file() else f"the call for {folder}"


def read_config(path: Path) -> dict[str, Any]:
    """All keys of a YAML file; FileFormatError if it is not a mapping, or that of a training run."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path} must hold keys and values, found {type(raw).__name__}.")
    if {"dictionary", "run"} <= raw.keys():
        raise FileFormatError(
            f"{path.parent} is the folder of a training run; the dictionary that it writes at its end is "
            f"{path.parent / 'transcoder'}"
        )
    is_sealed(raw, str(path))
    config = {key: value for key, value in raw.items() if key != DIGEST}
    if config.get("model_kind") == TOPK_CLT:
        if config.get("activation") != "topk":
            raise FileFormatError(
                f"{path} says model_kind {TOPK_CLT}, but activation {shortened(config.get('activation'))}; topk is expected."
            )
        config["model_kind"] = CLT
    return config


def require_as_written(folder: Path) -> None:
    """FileFormatError if config.yaml or a layer's file in ``folder`` is not the one that was written with the others.

    Reads headers alone, whose digests config.yaml's own covers. A folder without a digest, of others, passes.
    """
    path = folder / CONFIG_NAME
    raw = read_yaml(path) if path.is_file() else None
    if isinstance(raw, dict) and is_sealed(raw, str(path)):
        unsealed(raw, f"{path}, together with the layers' files beside it,", beside=_digests(folder))


def write_config(config: dict[str, Any], folder: Path) -> None:
    """Write ``config.yaml``, without keys that are None, with a digest of it and of the layers' files in ``folder``."""
    given = {key: value for key, value in config.items() if value is not None}
    if given.get("model_kind") == CLT and given.get("activation") == "topk":
        given["model_kind"] = TOPK_CLT
    text = yaml.safe_dump(sealed(given, beside=_digests(folder)), sort_keys=False)
    with atomic_write(folder / CONFIG_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _digests(folder: Path) -> dict[str, str | None]:
    files = sorted(path for path in folder.iterdir() if NATIVE_FILE.fullmatch(path.name))
    return {path.name: open_tensor_file(path).digest for path in files}
