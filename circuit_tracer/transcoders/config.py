"""`config.yaml` of a set of transcoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import atomic_write, read_yaml

CONFIG_NAME = "config.yaml"

ModelKind = Literal["transcoder_set", "cross_layer_transcoder"]


class TranscoderConfig(BaseModel):
    """The keys this package uses; others (nnsight locations, training notes) are ignored.

    ``transcoders`` lists one file a layer, as `hf://` URIs or paths relative to the config. ``activation`` and ``k``
    say what the weight files do not. ``scan``, ``repo_id``, ``revision`` and ``subfolder`` are derived when loading
    from a hub.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model_kind: ModelKind
    feature_input_hook: str
    feature_output_hook: str
    model_name: str | None = None
    transcoders: list[str] | None = None
    activation: Literal["relu", "jump_relu", "topk"] | None = None
    k: PositiveInt | None = None
    scan: str | list[str] | None = None
    repo_id: str | None = None
    revision: str | None = None
    subfolder: str | None = None


def validate_config(raw: dict[str, Any], source: str) -> TranscoderConfig:
    """The config of ``raw``; FileFormatError naming ``source``, the key, what was found and what is allowed."""
    try:
        return TranscoderConfig.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}"
            + ("" if each["type"] == "missing" else f", found {each['input']!r}")
            for each in error.errors()
        )
        raise FileFormatError(f"{source} cannot be used: {problems}. Correct or add these keys.") from error


def read_config(path: Path) -> dict[str, Any]:
    """All keys of a YAML file; FileFormatError if it is not a mapping."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path} must hold keys and values, found {type(raw).__name__}.")
    return raw


def write_config(config: dict[str, Any], folder: Path) -> None:
    """Write ``config.yaml``, without keys that are None."""
    text = yaml.safe_dump({key: value for key, value in config.items() if value is not None}, sort_keys=False)
    with atomic_write(folder / CONFIG_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")
