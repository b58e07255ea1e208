"""Public files that are known and are no transcoders that can be traced: each is refused as what it is.

Some have tensors under names that a reader of transcoders would take.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuit_tracer.errors import FileFormatError
from circuit_tracer.transcoders.formats.layer_file import LayerFile

_AUTOENCODER = "an autoencoder of one activation; it cannot replace an MLP layer"
_NAMES = Callable[[set[str]], bool]


@dataclass(frozen=True)
class Refused:
    """What files are that ``fits`` recognises by the names of their tensors, or ``says`` by key and value beside them."""

    what: str
    fits: _NAMES = lambda names: False
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
        "OpenMOSS's Lorsa, a dictionary of attention outputs; it cannot replace an MLP layer",
        says=("sae_type", ("lorsa",)),
    ),
    Refused(
        "OpenMOSS's cross-layer transcoder, which is not read; export it as circuit-tracer's files (W_enc_{i}, W_dec_{i})",
        says=("sae_type", ("clt",)),
    ),
    Refused("a crosscoder of several layers' activations; it replaces no MLP", says=("sae_type", ("crosscoder",))),
    Refused(
        "a mixture of linear transforms (MOLT): its features are matrices, which have no decoder row",
        says=("sae_type", ("molt",)),
    ),
    Refused(
        "a mixture of linear transforms (MOLT): its features are matrices, which have no decoder row",
        _starting("U_matrices.", "V_matrices."),
    ),
    Refused(
        "OpenMOSS's Llama Scope as it was first published (hyperparams.json): how it normalises and what its thresholds are "
        "compared with is not known for certain. Convert it with Language-Model-SAEs, to config.json and "
        "sae_weights.safetensors",
        says=("jump_relu_threshold", ()),
    ),
    Refused(
        "a whole language model with adapters of transcoders inside; it is no set of transcoders",
        lambda names: any("mlp.transcoder_enc" in name for name in names),
    ),
    Refused("a language model; give it as the model (-m)", _starting("model.layers.0.self_attn.")),
    Refused("a language model; give it as the model (-m)", _starting("transformer.h.0.attn.")),
)
_LARGEST_PICKLE = 2 * 2**20  # bytes of names and shapes; the numbers lie beside
_OF_TORCH = {"storage", "cpu", "cuda:0", *map(str, range(1000))}  # what every such file says
_TEXT_CODES = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE")
# In pickles (.pt, .pth), of which only names are looked at.
PICKLED = (
    Refused(f"Qwen-Scope or a file like it: {_AUTOENCODER}", _having("W_enc", "W_dec", "b_enc", "b_dec")),
    Refused(f"dictionary_learning: {_AUTOENCODER}", _having("encoder.weight", "decoder.weight")),
    Refused(f"Goodfire: {_AUTOENCODER}", _having("encoder_linear.weight", "decoder_linear.weight")),
)


def refuse_known(file: LayerFile) -> None:
    """Raise FileFormatError for a file that is known to be something else, saying what."""
    for known in REFUSED:
        key, values = known.says
        said = bool(key) and file.has_key(key) and (not values or str(file.value(key)) in values)
        if said or known.fits(file.names):
            raise FileFormatError(f"{file.path} is {known.what}.")


def pickle_refused(path: Path) -> FileFormatError:
    """What to say of a pickle: what it holds, as far as the texts in it tell; it is not run."""
    names = _texts(path)
    for known in PICKLED:
        if known.fits(set(names)):
            return FileFormatError(f"{path} is {known.what}.")
    named = f" ({', '.join(names[:8])})" if names else ""
    return FileFormatError(
        f"{path} is a pickle{named}, which is not read. If it holds transcoders, save its tensors as .safetensors, in one of "
        "the known layouts."
    )


def _texts(path: Path) -> list[str]:
    """The texts in a file of torch.save: names of tensors, and others; none if it is something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
            data = archive.read(member) if member.file_size <= _LARGEST_PICKLE else b""
        found = [argument for code, argument, _ in pickletools.genops(data) if code.name in _TEXT_CODES]
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        StopIteration,
        OverflowError,
    ):
        return []
    return list(dict.fromkeys(str(text) for text in found if str(text) not in _OF_TORCH))
