"""Whether transcoders subtract their decoder bias from the input, where their files do not say: what reconstructs better.

EleutherAI's sparsify subtracted b_dec from every input, and later only from those of autoencoders; its older cfg.json do not
tell. The two differ by a constant in the encoder bias, b_enc - W_enc b_dec.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from circuit_tracer.attribution.prompt import encode_prompt, linearise
from circuit_tracer.errors import InputError, warn
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.tokenization import tokenize
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.formats.folding import shifted_bias
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

TEXT = (
    "The lighthouse stood at the end of a narrow road, two miles from the village. In 1887 its keeper wrote down the "
    "weather every "
    "evening: wind from the north, heavy rain, and a ship that turned back to the harbour. His daughter, who later studied law "
    "in Edinburgh, kept all of his notebooks."
)


def with_known_shift(parts: ModelParts, transcoders: Transcoders, tokenizer: Any) -> Transcoders:
    """The transcoders, in place, with the encoder biases that leave the smaller error on a text; a warning says which.

    Raises InputError without a tokenizer.
    """
    if not isinstance(transcoders, TranscoderSet) or not transcoders.input_shift_unknown:
        return transcoders
    if tokenizer is None:
        raise InputError(
            "these transcoders do not say whether they subtract b_dec from their input, and without a tokenizer it cannot be "
            "measured: give input_shift=True or False when they are loaded"
        )
    ids = tokenize(TEXT, tokenizer)[: parts.context_length]
    plain = {layer: transcoders[layer].b_enc.clone() for layer in transcoders.layers}
    without = _error(parts, transcoders, ids)
    for layer, bias in plain.items():
        one = transcoders[layer]
        one.b_enc = shifted_bias(one.encoder.block(0, one.d_transcoder), bias, one.b_dec).to(bias)
    shifted = _error(parts, transcoders, ids)
    if without <= shifted:
        for layer, bias in plain.items():
            transcoders[layer].b_enc = bias
    transcoders.input_shift_unknown = False
    better = "are taken not to" if without <= shifted else "are taken to"
    warn(
        f"these transcoders do not say whether they subtract b_dec from their input. On a text, their NMSE is "
        f"{without:.3f} without "
        f"and {shifted:.3f} with it: they {better}. Say so (input_shift in config.yaml, --input-shift) to leave the test out."
    )
    return transcoders


def _error(parts: ModelParts, transcoders: Transcoders, ids: Tensor) -> float:
    """NMSE of the reconstruction, mean over the layers."""
    prompt = linearise(encode_prompt(parts, transcoders, ids, [0]), transcoders, keep_rows=False)
    return float(prompt.reconstruction.nmse[list(transcoders.layers)].mean())
