"""Public files that are known and can be read neither as transcoders nor as autoencoders: each is refused as what it is.

Some have tensors under names that a reader of transcoders would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.formats.layer_file import LayerFile

_CROSSCODER = (
    "a crosscoder of several layers' activations, or of two models': it replaces no MLP, and has no place of its own. Choose "
    "an autoencoder or transcoders of one layer"
)
_NAMES = Callable[[set[str]], bool]


@dataclass(frozen=True)
class Refused:
    """What files are that ``fits`` recognises by the names of their tensors, ``axes`` by how many axes one has, or ``says`` by
    key and value beside them.
    """

    what: str
    fits: _NAMES = lambda names: False
    axes: tuple[str, int] = ("", 0)
    says: tuple[str, tuple[str, ...]] = ("", ())


def _having(*names: str) -> _NAMES:
    return lambda found: set(names) <= found


def _starting(*starts: str) -> _NAMES:
    return lambda found: all(any(name.startswith(start) for name in found) for start in starts)


REFUSED = (
    Refused(
        "ByteDance's cross-layer transcoder: its features are the 360 largest of all layers together, ranked by "
        "activation times "
        "decoder norm, which no activation function of a layer can say",
        _starting("W_enc_", "W_dec_norm"),
    ),
    Refused(
        "OpenMOSS's Lorsa, a dictionary of attention outputs; it cannot replace an MLP layer. Give it beside transcoders "
        "(attention=..., --attention)",
        says=("sae_type", ("lorsa",)),
    ),
    Refused(
        "OpenMOSS's cross-layer transcoder, which is not read; export it as circuit-tracer's files (W_enc_{i}, W_dec_{i})",
        says=("sae_type", ("clt",)),
    ),
    Refused(_CROSSCODER, says=("sae_type", ("crosscoder",))),
    Refused(_CROSSCODER, axes=("encoder.weight", 3)),
    Refused(
        "a mixture of linear transforms (MOLT): its features are matrices, which have no decoder row",
        says=("sae_type", ("molt",)),
    ),
    Refused(
        "a mixture of linear transforms (MOLT): its features are matrices, which have no decoder row",
        _starting("U_matrices.", "V_matrices."),
    ),
    Refused(
        "a temporal autoencoder, which mixes earlier tokens into each feature; it is not read. Choose one of SAELens' other "
        "architectures",
        says=("architecture", ("temporal",)),
    ),
    Refused(
        "an autoencoder by matching pursuit, whose features are chosen one after the other, each by what the others leave; "
        "it is not read. Choose one of SAELens' other architectures",
        says=("architecture", ("matching_pursuit",)),
    ),
    Refused(
        "a whole language model with adapters of transcoders inside; it is no set of transcoders",
        lambda names: any("mlp.transcoder_enc" in name for name in names),
    ),
    Refused("a language model; give it as the model (-m)", _starting("model.layers.0.self_attn.")),
    Refused("a language model; give it as the model (-m)", _starting("transformer.h.0.attn.")),
)


def refuse_known(file: LayerFile) -> None:
    """Raise FileFormatError for a file that is known to be something else, saying what."""
    for known in REFUSED:
        key, values = known.says
        said = bool(key) and file.has_key(key) and (not values or str(file.value(key)) in values)
        name, axes = known.axes
        if said or known.fits(file.names) or (name in file and len(file.shapes[name]) == axes):
            raise FileFormatError(f"{file.path} is {known.what}.")
