"""EleutherAI sparsify transcoders: `<hookpoint>/sae.safetensors` with `cfg.json`.

`encoder.weight` (F, D), `encoder.bias` (F,), `W_dec` (F, D), `b_dec` (D,), optional `W_skip` (D, D) as x @ W_skip.T.
Encoding is ReLU, then TopK. Autoencoders (cfg `transcode` false) subtract b_dec from their input and reconstruct it:
they are not transcoders, and are refused. Older cfg.json have no `transcode`: those with a skip connection are transcoders, and
whether they subtract b_dec is measured when they meet a model (attribution/input_shift.py). A transcoder reads the input of
the module at its hookpoint, which is the folder's name, and writes its output.
"""

from __future__ import annotations

from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.beside import settings_above
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import Place, place_of, require_mlp_places

HARMLESS_KEYS = (
    Harmless("expansion_factor", "num_latents in other words"),
    Harmless("normalize_decoder", "the decoder was normalised in training, and is stored so"),
    Harmless("multi_topk", "a loss of training"),
    Harmless("signed", "older: whether negative features count", (False,)),
    Harmless("init_seeds", "of training"),
    Harmless("hookpoint", "the folder's name"),
)


def detect(file: LayerFile) -> bool:
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= file.names


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
    transcode, activation, k = file.key("transcode"), file.key("activation", default="topk"), file.key("k")
    if transcode is not True and not (transcode is None and skip is not None):
        raise FileFormatError(
            f"{file.path}: cfg.json has transcode = {shortened(transcode)}; true is expected. "
            "Autoencoders of one activation cannot replace an MLP layer."
        )
    if activation != "topk" or whole(k) is None:
        raise FileFormatError(
            f"{file.path}: cfg.json has activation {shortened(activation)} and k {shortened(k)}; only topk "
            "with a positive k is supported."
        )
    file.expect("d_in", encoder.shape[-1], "the encoder reads")
    if file.key("num_latents") != 0:  # 0: expansion_factor says it
        file.expect("num_latents", len(encoder), "the encoder has")
    file.expect("skip_connection", skip is not None, "whether there is a tensor W_skip is")
    reads, writes = _places(file)
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=decoder,
        encoder_bias=file.tensor("encoder.bias"),
        decoder_bias=decoder_bias,
        skip=skip,
        k=whole(k),
        nonnegative=True,
        reads=reads,
        writes=writes,
        input_shift_unknown=transcode is None,
    )


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
