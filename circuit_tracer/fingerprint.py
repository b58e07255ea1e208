"""What a thing was made with. Of weights: digests of a sample of every tensor, quick for large models and lazy dictionaries.

The same on any device and however the weights are read; another one after training, which moves every tensor. A change that
misses all sampled numbers is not seen. Sampled are 1,024 numbers or more of every weight (all, if it has fewer); of encoders
and decoders, which may lie in files, so many of 8 rows a layer, and of a decoder's rows for every layer that they write to.
Samples depend on the number format that the weights were loaded in, so fingerprints are compared between equal formats only.
Digests are remembered while the weights are unchanged (`models/remembered.py`); making them takes as long as a small trace.
Letters: F features a layer, T layers a feature writes to, D d_model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, shortened
from circuit_tracer.models.remembered import Remembered, weights_of
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.transcoders.activations import Activation
from circuit_tracer.transcoders.lorsa import Lorsa
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.stacked import Stacked

if TYPE_CHECKING:
    from circuit_tracer.models.parts import ModelParts
    from circuit_tracer.transcoders.base import Transcoders

VERSION = 3  # of the recipe below; digests by another are not compared
SAMPLES_A_WEIGHT = 1024  # numbers of every weight
ROWS_A_LAYER = 8  # of an encoder or decoder, which may lie in a file
_KNOWN = ("circuit_tracer.transcoders.", "torch.nn.")  # whose weights are parameters, or mapped from files
_MODELS, _DICTIONARIES = Remembered[str](), Remembered[str]()
PROBE = "The capital of France is Paris.\n\tdéjà vu 東京 12345 !?"  # tells tokenizers of one vocabulary apart


def model_fingerprint(parts: ModelParts) -> str:
    """Digest of names, shapes and a sample of every weight."""
    kind = parts.architecture.model_type
    return _MODELS.value(
        parts.model, weights_of(parts.model), kind, lambda: _digest(kind, parts.model.named_parameters())
    )


def transcoder_fingerprint(transcoders: Transcoders) -> str:
    """Digest of sizes, hooks, activation functions with their thresholds, biases, skips, and of encoder and decoder rows.

    Of every layer are sampled 1,024 numbers of each bias, threshold and skip matrix, and 8 rows, evenly spread, of the encoder
    and of the decoder for every layer written to: a change of all decoder rows changes it, one of a single row need not.
    """
    described = f"{transcoders.kind} {transcoders.feature_input_hook} {transcoders.feature_output_hook}"
    if isinstance(transcoders, Neurons):  # the model's own weights
        return _digest(f"{described} {model_fingerprint(transcoders.parts)}", [])
    if isinstance(transcoders, Stacked):
        return _digest(
            " ".join([described, *(transcoder_fingerprint(part.dictionary) for part in transcoders.stack())]), []
        )
    modules = list(transcoders.modules())
    if any(not type(module).__module__.startswith(_KNOWN) for module in modules):  # may hold weights anywhere
        return _digest(described, _tensors(transcoders))
    activations = [module.extra_repr() for module in modules if isinstance(module, Activation)]
    stores = [store for module in modules for rows in vars(module).get("_mapped", {}).values() for store in rows]
    weights = [*weights_of(transcoders), *(store.mapped for store in stores)]
    settings = described, *activations, *((store.dtype, store.device) for store in stores)
    return _DICTIONARIES.value(transcoders, weights, settings, lambda: _digest(described, _tensors(transcoders)))


def fingerprints(
    parts: ModelParts, transcoders: Transcoders, attention: Transcoders | None = None
) -> dict[str, str | int]:
    """Both, and that of a dictionary of attention outputs, with the number formats they hold for and the recipe's version; JSON
    values.
    """
    own = {} if attention is None else {"attention": transcoder_fingerprint(attention)}
    return {
        "version": VERSION,
        "model": model_fingerprint(parts),
        "model_dtype": parts.config.dtype,
        "transcoder": transcoder_fingerprint(transcoders),
        "transcoder_dtype": str(transcoders.dtype).removeprefix("torch."),
        **own,
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of a vocabulary, its special tokens, and what becomes of one text; "none" without a tokenizer."""
    if tokenizer is None:
        return "none"
    special = SpecialTokens.of(tokenizer)
    ids = tokenizer(PROBE, add_special_tokens=False, verbose=False).input_ids
    described = [sorted(tokenizer.get_vocab().items()), special.first, special.end, special.pad, list(ids)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def require_same(found: Any, expected: dict[str, Any], what: str, advice: str) -> None:
    """Raise CompatibilityError, naming each setting that differs, unless `found` equals `expected`."""
    if differing := differences(found if isinstance(found, dict) else {}, expected):
        raise CompatibilityError(
            f"{what} belongs to another model or other data: {'; '.join(differing[:20])}. {advice}"
        )


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Settings that differ, in words: those that were found "there", and those that are expected "here"."""
    expected = json.loads(json.dumps(expected))
    return [
        f"{str(name)[:100]} is {shortened(found.get(name))} there and {shortened(expected.get(name))} here"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]


def _digest(start: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(start.encode())
    for name, weight in tensors:
        sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLES_A_WEIGHT)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(transcoders: Transcoders) -> Iterator[tuple[str, Tensor]]:
    for layer in transcoders.layers:
        n_features = transcoders.n_features(layer)
        encoder, decoder = transcoders.encoder(layer), transcoders.decoder(layer)
        index = torch.linspace(0, n_features - 1, ROWS_A_LAYER).long().unique()
        yield f"{layer} encoder {tuple(encoder.shape)}", encoder.rows(index)
        for slot, rows in enumerate(decoder.rows(index).unbind(1)):
            yield f"{layer} decoder {tuple(decoder.shape)} {slot}", rows
        function = transcoders.activation(layer)
        if (router := transcoders.router(layer)) is not None:
            yield f"{layer} router", router.weight
            yield f"{layer} router bias", router.bias
        yield f"{layer} encoder bias", transcoders.encoder_bias(layer)
        yield f"{layer} decoder bias", transcoders.decoder_bias(layer)
        settings = [getattr(function, name, None) for name in ("k", "nonnegative")]
        yield f"{layer} {function.name} {settings}", getattr(function, "threshold", torch.zeros(1))
        skip = transcoders.skip_matrix(layer)
        if skip is not None:
            yield f"{layer} skip", skip
        if isinstance(transcoders, Lorsa):
            for name, weight in transcoders.queries_keys(layer).named_parameters():
                yield f"{layer} {name} {tuple(weight.shape)}", weight
