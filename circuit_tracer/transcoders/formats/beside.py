"""What lies beside a layer's tensors: configuration files that say how to use them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files import read_json, read_yaml

# Names under which libraries keep settings beside weights: cfg.json (SAELens, sparsify), config.json (Gemma Scope 2, OpenMOSS),
# hyperparams.json (Llama Scope), activation_scaler.json (SAELens' checkpoints) and the like.
_SETTINGS = re.compile(
    r"(.+[._-])?(cfg|config|configuration|hyperparams|hyperparameters|hparams|params|settings|args|scaler|scalers|norms?|"
    r"statistics|stats)\.(json|ya?ml)",
    re.IGNORECASE,
)
_NOTES = re.compile(
    r"(.+[._-])?(metadata|meta|info)\.json", re.IGNORECASE
)  # free notes, as those of a safetensors file
_SUFFIXES = (".json", ".yaml", ".yml")
# Files that look like settings or weights and are not needed: pattern -> why.
HARMLESS_FILES = {
    "sparsity.safetensors": "SAELens: how often each feature was active in training",
    "activations_store_state.safetensors": "SAELens: the place in the training data",
    "runner_cfg.json": "SAELens: how it was trained; what counts is in cfg.json",
    "config.yaml": "of the whole set: config.py reads it",
    "training.yaml": "of our training: folded into what is exported",
    "wandb-config.yaml": "of training, in Qwen3's sets",
    "wanb-config.yaml": "the same, misspelt",
    "trainer_state.pt": "of training",
    "optimizer*.pt": "of training",
    "lr_scheduler*.pt": "of training",
    "state.pt": "sparsify: of training",
    "rng_state*": "of training",
}
_OF_A_MODEL = ("model*.safetensors", "pytorch_model*.bin")  # where its config.json lies beside


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
    names = sorted(name for name in os.listdir(path.parent) if name.lower().endswith(_SUFFIXES))
    for beside in (path.parent / name for name in names):  # not every name as a path: each layer's file asks
        notes = _NOTES.fullmatch(beside.name)
        own = beside.stem == path.stem and beside.suffix == ".json"
        if not (notes or own or _SETTINGS.fullmatch(beside.name)) or is_harmless(beside.name) or not beside.is_file():
            continue
        raw = _read(beside)
        if _is_a_models(raw):
            continue
        for key, value in _flat(raw):
            if notes and not computes(key.rpartition(".")[2]):
                continue
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


def is_harmless(name: str) -> bool:
    """Whether a file of this name is known not to matter."""
    return any(fnmatchcase(name, pattern) for pattern in HARMLESS_FILES)


def is_a_models_weights(name: str) -> bool:
    """Whether a file of this name is one of a language model, if the model's config.json lies beside it."""
    return any(fnmatchcase(name, pattern) for pattern in _OF_A_MODEL)


def is_a_models_config(path: Path) -> bool:
    """Whether a config.json is that of a language model."""
    return _is_a_models(_read(path))


def _is_a_models(raw: dict[str, Any]) -> bool:
    return "model_type" in raw and ("architectures" in raw or "transformers_version" in raw)


def _read(path: Path) -> dict[str, Any]:
    raw = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path} must hold keys and values, found {type(raw).__name__}.")
    return {str(key): value for key, value in raw.items()}


# Metadata of a safetensors file are free notes, mostly of who wrote it. A note named like something that a reader computes
# with is taken for what it says: it must be read, or it is refused.
_TELLING = ("activ", "thresh", "scal", "norm", "topk", "top_k", "relu", "skip", "bias", "hook", "architect", "transcod")


def computes(note: str) -> bool:
    """Whether a note is named like something that a reader computes with."""
    lower = note.lower()
    return lower == "k" or any(part in lower for part in _TELLING)


def _flat(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
