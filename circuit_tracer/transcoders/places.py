"""Where other libraries' files say that a dictionary reads and writes, in this package's names (models/sites.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from circuit_tracer.errors import FileFormatError, shortened

_LAYER = re.compile(r"(?:^|.*?\.)(?:blocks|layers?|h)\.(\d{1,6}|\*|\{\w*\})\.(.+)")  # of one layer, or of any

# What follows the layer in TransformerLens' names and in paths of transformers' modules -> our name.
_HOOKS = {
    "hook_resid_mid": "hook_resid_mid",
    "hook_mlp_in": "hook_resid_mid",  # TransformerLens: what the norm before the MLP reads
    "ln2.hook_normalized": "ln2.hook_normalized",
    "mlp.hook_in": "mlp.hook_in",
    "hook_mlp_out": "hook_mlp_out",
    "mlp.hook_out": "mlp.hook_out",
    "mlp.input": "mlp.hook_in",
    "mlp.output": "mlp.hook_out",
    "pre_feedforward_layernorm.input": "hook_resid_mid",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.input": "mlp.hook_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
# Places of autoencoders, which no MLP has at its ends -> what is there, and our name of it.
_ELSEWHERE = {
    "hook_resid_pre": ("the residual stream", "hook_resid_pre"),
    "hook_resid_post": ("the residual stream", "hook_resid_post"),
    "input": ("the residual stream", "hook_resid_pre"),
    "output": ("the residual stream", "hook_resid_post"),
    "hook_attn_out": ("attention outputs", "hook_attn_out"),
    "self_attn.output": ("attention outputs", "attn.hook_out"),
    "attention.output": ("attention outputs", "attn.hook_out"),
    "attn.output": ("attention outputs", "attn.hook_out"),
    "attn.hook_z": ("heads of attention", "attn.hook_z"),
    "hook_z": ("heads of attention", "attn.hook_z"),
    "self_attn.o_proj.input": ("heads of attention", "attn.hook_z"),
    "mlp.hook_pre": ("neurons", None),
    "mlp.hook_post": ("neurons", None),
}
# Where autoencoders may stand: whole streams, and what attention and MLP add to the stream.
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
AUTOENCODED = (*STREAM, "attn.hook_z", "attn.hook_out", "hook_attn_out", "mlp.hook_out", "hook_mlp_out")
LONGEST = 200  # characters of a place that messages show
READABLE = {"hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"}
WRITABLE = {"hook_mlp_out", "mlp.hook_out"}


@dataclass(frozen=True)
class Place:
    """Where a file says that its dictionary stands: as it is written there, the layer if it names one, and our name for it.

    None: it has none here. ``elsewhere``: what is there, if that is known not to be an MLP's input or output.
    """

    said: str
    layer: int | None
    hook: str | None
    elsewhere: str | None = None


def place_of(said: object, source: str) -> Place:
    """The place that a file's text names, or all texts of a list, one a layer; FileFormatError for anything else."""
    if isinstance(said, list) and said:
        places = [place_of(each, source) for each in said]
        if len({place.hook for place in places}) == 1:
            return replace(places[0], said=_cut(str(said)), layer=None)
        raise FileFormatError(f"{source}: it names places of several kinds, {shortened(said)}; a transcoder has one.")
    if not isinstance(said, str) or not said:
        raise FileFormatError(
            f"{source}: the place of a transcoder is a text such as blocks.0.mlp.hook_in, found {shortened(said)}."
        )
    match = _LAYER.fullmatch(said)
    layer, rest = (match[1], match[2]) if match else ("", said)
    what, hook = _ELSEWHERE.get(rest, (None, _HOOKS.get(rest)))
    return Place(_cut(said), int(layer) if layer.isdecimal() else None, hook, what)


def _cut(said: str) -> str:
    """As it stands in messages."""
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def require_one_place(said: object, source: str) -> Place:
    """The place of an autoencoder. Raises FileFormatError for one where none can stand here."""
    place = place_of(said, source)
    if place.hook not in AUTOENCODED:
        what = f", {place.elsewhere}" if place.elsewhere else ""
        raise FileFormatError(
            f"{source}: it stands at {place.said}{what}; autoencoders are read that stand in the residual stream or at what a "
            f"layer adds to it, such as blocks.3.hook_resid_post ({', '.join(AUTOENCODED)})."
        )
    return place


def require_mlp_places(reads: object, writes: object, source: str) -> tuple[Place | None, Place | None]:
    """The places that a file names, None where it names none.

    Raises FileFormatError for two that are one (an autoencoder), for known places that are not an MLP's input and output, and
    for two layers.
    """
    places = [None if said is None else place_of(said, source) for said in (reads, writes)]
    read, write = places
    if read is not None and write is not None and read.said == write.said:
        raise FileFormatError(
            f"{source}: it reads and writes {read.said}: an autoencoder of one activation, which cannot replace an MLP layer."
        )
    for place, allowed, does in ((read, READABLE, "reads"), (write, WRITABLE, "writes")):
        if place is not None and (place.elsewhere or (place.hook is not None and place.hook not in allowed)):
            what = place.elsewhere or f"an MLP's {'output' if place.hook in WRITABLE else 'input'}"
            raise FileFormatError(
                f"{source}: it {does} {place.said}, {what}; a transcoder that replaces an MLP layer {does} one of "
                f"{', '.join(sorted(allowed))}. It is a dictionary of another kind."
            )
    if read is not None and write is not None and None not in (read.layer, write.layer) and read.layer != write.layer:
        raise FileFormatError(
            f"{source}: it reads layer {read.layer} ({read.said}) and writes layer {write.layer} ({write.said}); the "
            "transcoder of a layer does both there."
        )
    return read, write
