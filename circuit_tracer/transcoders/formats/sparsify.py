"""EleutherAI sparsify transcoders: `<hookpoint>/sae.safetensors` with `cfg.json`.

`encoder.weight` (F, D), `encoder.bias` (F,), `W_dec` (F, D), `b_dec` (D,), optional `W_skip` (D, D) as x @ W_skip.T.
Encoding is ReLU, then TopK. Autoencoders (cfg `transcode` false) subtract b_dec from their input and reconstruct it:
they are not transcoders, and are refused.
"""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import shortened
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.layer_weights import LayerWeights


def detect(file: TensorFile) -> bool:
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= set(file.entries)


def read_layer(file: TensorFile) -> LayerWeights:
    config = file.config
    if not config.get("transcode"):
        raise FileFormatError(
            f"{file.path}: cfg.json has transcode = {shortened(config.get('transcode'))}; true is expected. "
            "Autoencoders of one activation cannot replace an MLP layer."
        )
    activation, k = config.get("activation", "topk"), config.get("k")
    if activation != "topk" or type(k) is not int or k < 1:
        raise FileFormatError(
            f"{file.path}: cfg.json has activation {shortened(activation)} and k {shortened(k)}; only topk with a positive k "
            "is supported."
        )
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("encoder.weight"),
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("encoder.bias"),
        decoder_bias=file.tensor("b_dec"),
        skip=file.tensor("W_skip").T if "W_skip" in file else None,
        k=k,
        nonnegative=True,
    )


FORMAT = Format(
    name="EleutherAI sparsify",
    kind="transcoder_set",
    layout="<layer>/sae.safetensors and cfg.json: encoder.weight (F, D), encoder.bias (F), W_dec (F, D), b_dec (D) "
    "[, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
)
