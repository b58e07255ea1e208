"""EleutherAI sparsify transcoders and autoencoders: `<hookpoint>/sae.safetensors` with `cfg.json`.

`encoder.weight` (F, D), `encoder.bias` (F,), `W_dec` (F, D), `b_dec` (D,), optional `W_skip` (D, D) as x @ W_skip.T.
Encoding is ReLU, then TopK. Autoencoders (cfg `transcode` false) subtract b_dec from their input and reconstruct it. Older
cfg.json have no `transcode`: those with a skip connection are transcoders, and whether they subtract b_dec is measured when
they meet a model (attribution/input_shift.py). The folder's name is the hookpoint, a module: a transcoder reads its input and
writes its output, an autoencoder stands at its output.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.beside import settings_above
from circuit_tracer.transcoders.formats.folding import shifted_bias
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import Place, place_of, require_mlp_places, require_one_place

HARMLESS_KEYS = (
    Harmless("expansion_factor", "num_latents in other words"),
    Harmless("normalize_decoder", "the decoder was normalised in training, and is stored so"),
    Harmless("multi_topk", "a loss of training"),
    Harmless("signed", "older: whether negative features count", (False,)),
    Harmless("init_seeds", "of training"),
    Harmless("hookpoint", "the folder's name"),
)


def detect(file: LayerFile) -> bool:
    return _is_ours(file) and not _autoencodes(file)


def detect_autoencoder(file: LayerFile) -> bool:
    return _is_ours(file) and _autoencodes(file)


def _is_ours(file: LayerFile) -> bool:
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= file.names


def _autoencodes(file: LayerFile) -> bool:
    transcode = file.value("transcode")
    return transcode is False or (transcode is None and "W_skip" not in file)


def read_autoencoder(file: LayerFile) -> LayerWeights:
    file.key("transcode")
    encoder, bias = file.matrix("encoder.weight"), file.tensor("b_dec")
    hookpoint, source = file.path.parent.name, str(file.path)
    place = place_of(f"{hookpoint}.output", source)
    if place.layer is None:
        raise FileFormatError(
            f"{source}: its folder is called {hookpoint!r}, which names no place of a layer; an autoencoder of sparsify lies "
            "in a folder of its hookpoint, such as layers.5 or layers.5.mlp."
        )
    place = require_one_place(f"{hookpoint}.output", source)
    return LayerWeights(
        source=source,
        encoder=encoder,
        decoder=file.matrix("W_dec"),
        encoder_bias=shifted_bias(encoder, file.tensor("encoder.bias"), bias),
        decoder_bias=bias,
        k=_k(file, encoder, skip=False),
        nonnegative=True,
        reads=place,
        writes=place,
    )


def read_layer(file: LayerFile) -> LayerWeights:
    return weights(
        file,
        encoder=file.matrix("encoder.weight"),
        decoder=file.matrix("W_dec"),
        decoder_bias=file.tensor("b_dec"),
        skip=file.matrix("W_skip").T if "W_skip" in file else None,
    )


def weights(
    file: LayerFile, encoder: Tensor, decoder: Tensor, decoder_bias: Tensor, skip: Tensor | None
) -> LayerWeights:
    """The layer of these tensors, in the model's units, with what cfg.json says of it."""
    transcode = file.key("transcode")
    if transcode is not True and not (transcode is None and skip is not None):
        raise FileFormatError(
            f"{file.path}: cfg.json has transcode = {shortened(transcode)}; true is expected. "
            "Autoencoders of one activation cannot replace an MLP layer."
        )
    k = _k(file, encoder, skip is not None)
    reads, writes = _places(file)
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=decoder,
        encoder_bias=file.tensor("encoder.bias"),
        decoder_bias=decoder_bias,
        skip=skip,
        k=k,
        nonnegative=True,
        reads=reads,
        writes=writes,
        input_shift_unknown=transcode is None,
    )


def _k(file: LayerFile, encoder: Tensor, skip: bool) -> int | None:
    """k of TopK; FileFormatError for another activation, and for sizes that are not those of the tensors."""
    activation, k = file.key("activation", default="topk"), file.key("k")
    if activation != "topk" or whole(k) is None:
        raise FileFormatError(
            f"{file.path}: cfg.json has activation {shortened(activation)} and k {shortened(k)}; only topk "
            "with a positive k is supported."
        )
    file.expect("d_in", encoder.shape[-1], "the encoder reads")
    if file.key("num_latents") != 0:  # 0: expansion_factor says it
        file.expect("num_latents", len(encoder), "the encoder has")
    file.expect("skip_connection", skip, "whether there is a tensor W_skip is")
    return whole(k)


def _places(file: LayerFile) -> tuple[Place | None, Place | None]:
    """The input and output of the module that the folder is called after, where that is an MLP.

    A run's configuration, in the folder above, may say that other places were read: then nothing is known.
    """
    above = settings_above(file.path, "config.json")
    if above.get("hookpoints_in") not in (None, [], above.get("hookpoints")):
        return None, None
    hookpoint, source = file.path.parent.name, str(file.path)
    reads, writes = f"{hookpoint}.input", f"{hookpoint}.output"
    if place_of(reads, source).layer is None:  # a name that is not the library's
        return None, None
    return require_mlp_places(reads, writes, source)


FORMAT = Format(
    name="EleutherAI sparsify",
    kind="transcoder_set",
    layout="<layer>/sae.safetensors and cfg.json: encoder.weight (F, D), encoder.bias (F), W_dec (F, D), b_dec (D) "
    "[, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
    harmless_keys=HARMLESS_KEYS,
)
AUTOENCODER = replace(
    FORMAT,
    name="EleutherAI sparsify autoencoder",
    layout="the same, with transcode false in cfg.json, or neither transcode nor W_skip",
    detect=detect_autoencoder,
    read=each(read_autoencoder),
)
