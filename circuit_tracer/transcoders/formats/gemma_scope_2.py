"""What config.json beside Gemma Scope 2's tensors says, for its two kinds of transcoders and its autoencoders.

Autoencoders of the residual stream, of MLP outputs and of heads, and crosscoders have tensors of the same names; `type` tells
them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.places import Place, require_mlp_places, require_one_place

TENSORS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
SKIP = "affine_skip_connection"
SAE = "sae"
_KINDS = {"transcoder": "a per-layer transcoder", "clt": "a cross-layer transcoder"}
_OTHERS = {SAE: "an autoencoder of one activation", "crosscoder": "a crosscoder of several layers' residual streams"}
HARMLESS_KEYS = (
    Harmless("width", "the tensors say it"),
    Harmless("l0", "how many features were active in training, in words or as a number"),
)


@dataclass(frozen=True)
class Said:
    """Where the transcoder reads and writes; None: the file does not say."""

    reads: Place | None
    writes: Place | None


def said_by(file: LayerFile, kind: str, n_features: int) -> Said:
    """What the configuration says; FileFormatError unless it is of ``kind`` (transcoder, clt, sae) and fits the tensors."""
    found = file.key("type")
    if found is not None and found != kind:
        what = {**_KINDS, **_OTHERS}.get(str(found), "no kind that is known")
        raise FileFormatError(
            f"{file.path}: config.json says type = {shortened(found)}, {what}; "
            + (
                f"its tensors are those of {_KINDS[kind]}. Correct one of them."
                if str(found) in _KINDS
                else "it cannot replace MLP layers. Give a set whose type is transcoder or clt."
            )
        )
    if (architecture := file.key("architecture")) not in (None, "jump_relu"):
        raise FileFormatError(
            f"{file.path}: config.json says architecture = {shortened(architecture)}; only jump_relu is known for these files."
        )
    if kind != "clt":  # a cross-layer one's is that of all layers, rounded
        file.expect("width", n_features, "the tensors have a width of")
    file.expect("affine_connection", SKIP in file, f"whether there is a tensor {SKIP} is")
    read, written, source = file.key("hf_hook_point_in"), file.key("hf_hook_point_out"), str(file.path)
    if kind == SAE:
        if written not in (None, read):
            raise FileFormatError(
                f"{source}: config.json says type = 'sae', an autoencoder, which writes where it reads; but it reads "
                f"{shortened(read)} and writes {shortened(written)}. Correct one of them."
            )
        return Said(*(None if read is None else require_one_place(read, source),) * 2)
    return Said(*require_mlp_places(read, written, source))
