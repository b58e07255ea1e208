"""The option that names what is explained, and what its texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.cli import options
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.attribution.targets import Target
    from circuit_tracer.transcoders.base import Transcoders

OPTION = options.text(
    "--target",
    metavar="TARGET",
    help="Explain this instead of the most probable tokens: a token by its text or as id:NUMBER; "
    "feature:LAYER:POSITION:INDEX; the score of a head, attn:L5H3:QUERY:KEY[:OTHER], with another key or rest to compare "
    "with; a vector from a .safetensors or .npy file, direction:FILE:SITE:LAYER:POSITION; or a feature of an autoencoder, "
    "sae:FOLDER:LAYER:POSITION:INDEX. Repeatable.",
)
_DIRECTION, _LATENT = "direction:", "sae:"


def read_targets(texts: list[str]) -> list[Target]:
    """The targets of the option. Raises InputError."""
    from circuit_tracer.attribution.target_text import parse_target

    dictionaries: dict[str, Transcoders] = {}

    def read(text: str) -> Target:
        if text.startswith(_DIRECTION):
            return _direction(text)
        return _latent(text, dictionaries) if text.startswith(_LATENT) else parse_target(text)

    return [read(text) for text in texts]


def _latent(text: str, dictionaries: dict[str, Transcoders]) -> Target:
    """A feature of an autoencoder; the dictionaries opened so far are kept."""
    from circuit_tracer.attribution.stream_targets import latent_target
    from circuit_tracer.transcoders.loading import load_dictionary

    parts = text.removeprefix(_LATENT).rsplit(":", 3)
    if len(parts) != 4 or not all(part.removeprefix("-").isdecimal() for part in parts[1:]):
        raise InputError(f"target {text!r} is not sae:FOLDER:LAYER:POSITION:INDEX")
    folder, layer, position, index = parts[0], *map(int, parts[1:])
    if folder not in dictionaries:
        dictionaries[folder] = load_dictionary(folder, "cpu", None, lazy_encoder=True)[0]
    return latent_target(dictionaries[folder], layer, position, index)


def _direction(text: str) -> Target:
    """A vector from a file that holds one tensor."""
    from circuit_tracer.attribution.stream_targets import DirectionTarget
    from circuit_tracer.files.tensors import open_tensor_file

    parts = text.removeprefix(_DIRECTION).rsplit(":", 3)
    if len(parts) != 4 or not (parts[2].isdecimal() and parts[3].removeprefix("-").isdecimal()):
        raise InputError(f"target {text!r} is not direction:FILE:SITE:LAYER:POSITION")
    path, site, layer, position = Path(parts[0]), parts[1], int(parts[2]), int(parts[3])
    file = open_tensor_file(path)
    if len(file.entries) != 1:
        raise InputError(f"{path} holds {len(file.entries)} tensors; a direction is read from a file that holds one")
    label = f"{path.stem} at {site.removeprefix('hook_')} {layer}"
    return DirectionTarget(file.read(next(iter(file.entries))), site, layer, position, label=label)
