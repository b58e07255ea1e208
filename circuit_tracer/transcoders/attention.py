"""Dictionaries of attention outputs, which stand for attention in a graph: autoencoders at its heads or its output, and
Lorsa.
"""

from __future__ import annotations

from pathlib import Path

import torch

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.autoencoders import load_autoencoders
from circuit_tracer.transcoders.formats.lorsa import is_lorsa, load_lorsa
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Device = torch.device | str | None
PLACES = ("attn.hook_z", "hook_attn_out")


def load_attention(
    folder: str | Path, device: Device = None, dtype: torch.dtype | None = torch.float32
) -> TranscoderSet:
    """Autoencoders or Lorsa of a local folder or a hub name: of all layers of a model or of some.

    Args:
        folder: The folder.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.

    Returns:
        The transcoders, by layer.

    Raises:
        InputError: For no folder.
        FileFormatError: For files that are not understood, or autoencoders of another place.
    """
    if is_lorsa(folder):
        return load_lorsa(folder, device, dtype)
    dictionary = load_autoencoders(folder, device, dtype).placed
    hook = dictionary.feature_input_hook
    if hook not in PLACES:
        raise FileFormatError(
            f"{folder}: its autoencoders stand at {hook}; those of attention stand at {' or '.join(PLACES)}"
        )
    dictionary.scan = dictionary.scan or Path(folder).name
    return dictionary
