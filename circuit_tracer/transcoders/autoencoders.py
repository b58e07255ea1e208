"""Sparse autoencoders as a dictionary by itself: those of some layers, with which layers of the model they are of.

In a model they are a set of transcoders whose two hooks are one place (`loading.load_dictionary`): numbered by the model's
layers, and taken wherever features are read or changed. Here they are numbered from 0, as they are trained and measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.transcoders import locate
from circuit_tracer.transcoders.config import folder_config
from circuit_tracer.transcoders.formats import AUTOENCODERS, detect_format
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.loading import load_dictionary
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Device = torch.device | str | None


@dataclass(frozen=True)
class Autoencoders:
    """Autoencoders of some layers. dictionary: numbered from 0, both hooks are their place; layers: the model's."""

    dictionary: TranscoderSet
    layers: tuple[int, ...]
    model_name: str | None

    @classmethod
    def of(cls, placed: TranscoderSet, model_name: str | None) -> Autoencoders:
        """Those of a set that is numbered by the model's layers."""
        singles = {source: placed[layer] for source, layer in enumerate(placed.layers)}
        return cls(TranscoderSet(singles, *_hooks(placed)), placed.layers, model_name)

    @property
    def placed(self) -> TranscoderSet:
        """The dictionary numbered by the model's layers, as a model takes it."""
        singles = {layer: self.dictionary[source] for source, layer in enumerate(self.layers)}
        return TranscoderSet(singles, *_hooks(self.dictionary))


def _hooks(dictionary: TranscoderSet) -> tuple[str, str]:
    return dictionary.feature_input_hook, dictionary.feature_output_hook


def are_autoencoders(folder: str | Path) -> bool:
    """Whether a local folder holds them; its files are only looked at."""
    path = Path(folder).expanduser()
    try:
        if not path.is_dir():
            return False
        config = folder_config(path)
        hooks = config.get("feature_input_hook"), config.get("feature_output_hook")
        if hooks[0] is not None:
            return bool(hooks[0] == hooks[1])
        return detect_format(LayerFile(locate.in_folder(path, {}).files[0])) in AUTOENCODERS
    except CircuitTracerError:
        return False  # whoever loads it says what is wrong


def load_autoencoders(
    folder: str | Path, device: Device = None, dtype: torch.dtype | None = torch.float32
) -> Autoencoders:
    """Those of a local folder or a hub name, in any layout that is read.

    Raises InputError for no folder, FileFormatError for files that are not understood, stand at several places, or are
    transcoders.
    """
    placed, config = load_dictionary(folder, device, dtype, lazy_decoder=False)
    if not isinstance(placed, TranscoderSet) or not placed.is_autoencoder:
        raise FileFormatError(
            f"{folder} holds transcoders, which read {placed.feature_input_hook} and write {placed.feature_output_hook}; "
            "autoencoders read and write at one place."
        )
    name = config.get("model_name")
    return Autoencoders.of(placed, name if isinstance(name, str) else None)
