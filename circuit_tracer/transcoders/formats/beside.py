"""What lies beside a layer's tensors: configuration files that say how to use them, and files that must not be passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import read_json, read_yaml, shortened

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
_WEIGHTS = (
    ".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".h5", ".dcp", ".msgpack", ".gguf",
)  # fmt: skip

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
    for beside in sorted(path.parent.iterdir()):
        notes = _NOTES.fullmatch(beside.name)
        own = beside.stem == path.stem and beside.suffix == ".json"
        if not (notes or own or _SETTINGS.fullmatch(beside.name)) or harmless(beside) or not beside.is_file():
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


def require_nothing_left(folder: Path, used: Iterable[Path]) -> None:
    """Raise FileFormatError if ``folder``, or one between it and the files ``used``, holds other files with weights.

    A tensor file that no layer needs may hold thresholds, skip connections, or layers under another name.
    """
    needed = {path.resolve() for path in used}
    root = folder.resolve()
    folders = {root, *(parent for path in used for parent in path.absolute().parents if _inside(parent, folder))}
    left = sorted(
        path
        for each in folders
        for path in each.iterdir()
        if path.suffix.lower() in _WEIGHTS and path.is_file()
        and path.resolve() not in needed and not harmless(path)
    )  # fmt: skip
    if left:
        named = ", ".join(str(path) for path in left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise FileFormatError(
            f"{named}: no layer of the transcoders in {folder} takes this file. It may hold thresholds, scales or skip "
            "connections, without which other features would be computed. Move it elsewhere if it does not matter, or list "
            "the files to use in config.yaml under `transcoders`."
        )


def harmless(path: Path) -> bool:
    """Whether a file is known not to matter: by its name, or as the weights of a language model in the same folder."""
    if any(fnmatchcase(path.name, pattern) for pattern in HARMLESS_FILES):
        return True
    beside = path.parent / "config.json"
    return (
        any(fnmatchcase(path.name, pattern) for pattern in _OF_A_MODEL)
        and beside.is_file()
        and _is_a_models(_read(beside))
    )


def _is_a_models(raw: dict[str, Any]) -> bool:
    return "model_type" in raw and ("architectures" in raw or "transformers_version" in raw)


def _inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.absolute())


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
