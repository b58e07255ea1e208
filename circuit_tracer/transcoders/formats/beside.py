"""What lies beside a layer's tensors: configuration files that say how to use them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import read_json, shortened

# Names under which libraries keep settings beside weights: cfg.json (SAELens, sparsify), config.json (Gemma Scope 2, OpenMOSS),
# hyperparams.json (Llama Scope), activation_scaler.json (SAELens' checkpoints) and the like.
_SETTINGS = re.compile(
    r"(.+[._-])?(cfg|config|configuration|hyperparams|hyperparameters|hparams|params|settings|args|scaler|scalers|norms?|"
    r"statistics|stats)\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Setting:
    """A value of a configuration file, and which file."""

    value: Any
    path: Path


def settings_beside(path: Path) -> dict[str, Setting]:
    """The settings in files beside the tensor file ``path``, nested keys joined by dots; a model's config.json is none.

    Raises FileFormatError for a file that is no JSON object, or two that disagree.
    """
    found: dict[str, Setting] = {}
    for beside in sorted(path.parent.glob("*.json")):
        if not _SETTINGS.fullmatch(beside.name) and beside.stem != path.stem:
            continue
        raw = _read(beside)
        if "model_type" in raw and ("architectures" in raw or "transformers_version" in raw):
            continue  # a language model's, in the same folder
        for key, value in _flat(raw):
            if key in found and found[key].value != value:
                raise FileFormatError(
                    f"{beside} says {key} = {shortened(value)}, {found[key].path} says "
                    f"{shortened(found[key].value)}. Remove one of them."
                )
            found[key] = Setting(value, beside)
    return found


def settings_above(path: Path, name: str) -> dict[str, Any]:
    """The settings in the file ``name`` of the folder above that of ``path``, as `settings_beside`; empty if there is none."""
    above = path.parent.parent / name
    return dict(_flat(_read(above))) if above.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path} must hold a JSON object, found {type(raw).__name__}.")
    return raw


def _flat(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
