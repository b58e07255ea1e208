"""Sparse autoencoders of the residual stream, as our trainer and SAELens write them: one folder a layer.

They replace no MLP, so nothing is traced with them; they are measured by what the model does with their reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.transcoders import locate
from circuit_tracer.transcoders.building import require_layer
from circuit_tracer.transcoders.formats import switch
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.formats.saelens import AUTOENCODERS, FORMAT, read_autoencoder
from circuit_tracer.transcoders.layer_weights import require_uniform
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

KNOWN = (*AUTOENCODERS, switch.ARCHITECTURE)
Device = torch.device | str | None


@dataclass(frozen=True)
class Autoencoders:
    """Autoencoders of some layers. dictionary: numbered from 0, both hooks are their place; layers: the model's."""

    dictionary: TranscoderSet
    layers: tuple[int, ...]
    model_name: str | None


def are_autoencoders(folder: str | Path) -> bool:
    """Whether a local folder holds them; its files are only looked at."""
    path = Path(folder).expanduser()
    try:
        return path.is_dir() and LayerFile(locate.in_folder(path, {}).files[0]).value("architecture") in KNOWN
    except CircuitTracerError:
        return False  # whoever loads it says what is wrong


def load_autoencoders(
    folder: str | Path, device: Device = None, dtype: torch.dtype | None = torch.float32
) -> Autoencoders:
    """Those of a local folder, `layer_N/sae_weights.safetensors` with `cfg.json`, or one of a layer.

    Raises InputError for no folder, FileFormatError for files that are not understood or stand at several places.
    """
    found = locate.in_folder(Path(folder).expanduser(), {})
    files = [LayerFile(file) for file in found.files]
    weights = [(switch.read_layer if switch.detect(file) else read_autoencoder)(file) for file in files]
    names: set[str | None] = set()
    for file in files:
        said = file.value("metadata.model_name", file.value("model_name"))
        names.add(said if isinstance(said, str) else None)
        kind = switch.FORMAT if switch.detect(file) else FORMAT
        file.require_all_understood(kind.name, kind.harmless_tensors, kind.harmless_keys)
    require_uniform(weights)
    places = [one.reads for one in weights if one.reads is not None]
    layers = [place.layer for place in places if place.layer is not None]
    if len({place.hook for place in places}) > 1 or layers != sorted(set(layers)):
        raise FileFormatError(
            f"{folder}: its autoencoders stand at {', '.join(place.said for place in places[:3])}; of a set, each is of "
            "another layer, at the same place, in order."
        )
    for said, one in zip(found.layers or layers, weights, strict=True):
        require_layer(one, said)
    singles = {
        source: SingleLayerTranscoder.from_weights(one, layer_idx=source, device=device, dtype=dtype)
        for source, one in enumerate(weights)
    }
    hook = str(places[0].hook)
    name = names.pop() if len(names) == 1 else None
    return Autoencoders(TranscoderSet(singles, hook, hook), tuple(layers), name)
