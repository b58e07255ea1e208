"""EleutherAI sparsify transcoders: `<hookpoint>/sae.safetensors` with `cfg.json`.

`encoder.weight` (F, D), `encoder.bias` (F,), `W_dec` (F, D), `b_dec` (D,), optional `W_skip` (D, D) as x @ W_skip.T.
Encoding is ReLU, then TopK. Autoencoders (cfg `transcode` false) subtract b_dec from their input and reconstruct it:
they are not transcoders, and are refused.
"""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.layer_weights import LayerWeights


def detect(file: TensorFile) -> bool:
    return {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} <= set(file.entries)


def read_layer(file: TensorFile) -> LayerWeights:
    config = file.config
    if not config.get("transcode"):
        raise FileFormatError(
            f"{file.path}: cfg.json has transcode = {config.get('transcode')!r}; true is expected. "
            "Autoencoders of one activation cannot replace an MLP layer."
        )
    if config.get("activation", "topk") != "topk" or not config.get("k"):
        raise FileFormatError(
            f"{file.path}: cfg.json has activation {config.get('activation', 'topk')!r} and k {config.get('k')!r}; "
            "only topk with a positive k is supported."
        )
    return LayerWeights(
        source=str(file.path),
        encoder=file.tensor("encoder.weight"),
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("encoder.bias"),
        decoder_bias=file.tensor("b_dec"),
        skip=file.tensor("W_skip").T if "W_skip" in file else None,
        k=int(config["k"]),
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
