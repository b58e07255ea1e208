"""What a probe reads of texts: the model's stream at a place, features of a dictionary, or both, for every token.

One forward pass up to the deepest place that is asked for, over batches of texts of similar length, filled up at their end,
where causal attention never looks from their own tokens. Tokens that a trace leaves out (the special one in front) are not
read. What is learned from, and what scores, is float32, or float64 of a model that computes so.

Letters: B texts of a batch, P positions, D d_model, K places or layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.attention.heads import opened
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.models.capture import check_length
from circuit_tracer.models.chat import chat_text
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import Place, fast_attention, read
from circuit_tracer.models.sites import site_of
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import encode, tokenize, zero_positions
from circuit_tracer.probes.examples import Example, Span
from circuit_tracer.probes.probe import Probe, require_vectors
from circuit_tracer.transcoders.activations import Selected
from circuit_tracer.transcoders.base import Transcoders

BATCH_TOKENS = 2048  # read at once, filling included


@dataclass(frozen=True)
class Subject:
    """A model that probes read, and the dictionary by whose features, if there is one."""

    parts: ModelParts
    tokenizer: Any
    transcoders: Transcoders | None = None
    prepend_bos: bool = True

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any = None, transcoders: Transcoders | None = None, prepend_bos: bool = True
    ) -> Subject:
        """Of a `ReplacementModel` with what belongs to it, or of a transformers model with its tokenizer; one as it is."""
        if isinstance(model, Subject):
            return model
        parts, tokenizer, prepend_bos = opened(model, tokenizer, prepend_bos)
        if transcoders is None and isinstance(model, Traceable):
            transcoders = model.transcoders
        return cls(parts, tokenizer, transcoders, prepend_bos)


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it.

    Attributes:
        ids: (P,).
        start: (P,) the first character of each token, white space around it left out.
        stop: (P,) the one behind its last; equal to `start` for tokens that are no characters of the text.
        counted: (P,) bool, tokens that are read.
    """

    text: str
    ids: Tensor
    start: np.ndarray
    stop: np.ndarray
    counted: np.ndarray

    def within(self, spans: Sequence[Span]) -> np.ndarray:
        """(P,) bool: tokens that share a character with one of the spans."""
        inside = np.zeros(len(self.start), bool)
        for start, end in spans:
            inside |= (self.start < end) & (self.stop > start)
        return inside & (self.start < self.stop)


class Reads(NamedTuple):
    """What is read: a place of the stream, and features of some layers."""

    place: Place | None = None
    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, probe: Probe) -> Reads:
        """All that the probe reads, and of the features' layers all others."""
        return cls(probe.place, tuple(sorted({layer for layer, _ in probe.features})))


@dataclass(frozen=True)
class Activations:
    """Of one text.

    Attributes:
        stream: (P, D), or None.
        features: By layer, (position, index, value) of what counted tokens activate.
        inputs: By layer, (P, D) what the dictionary reads.
    """

    tokens: Tokens
    stream: Tensor | None
    features: Mapping[int, Selected] = field(default_factory=dict)
    inputs: Mapping[int, Tensor] = field(default_factory=dict)


def tokens_of(example: Example | str, subject: Subject) -> Tokens:
    """Raises InputError for a text that has no token to read, is too long for the model, or whose tokenizer cannot say where
    tokens stand.
    """
    found = tokens_of_any_length(example, subject)
    try:
        check_length(subject.parts, found.ids)
    except InputError as error:
        raise InputError(f"{example.where if isinstance(example, Example) else Example.where}: {error}") from None
    return found


def tokens_of_any_length(example: Example | str, subject: Subject) -> Tokens:
    """The same, of a text that may be longer than the model's context."""
    if isinstance(example, str):
        example = Example(example)
    parts, tokenizer, text = subject.parts, subject.tokenizer, example.text
    if text is None:
        assert example.messages is not None
        answered = example.messages[-1].get("role") == "assistant"
        try:
            text = chat_text(example.messages, tokenizer, add_generation_prompt=not answered)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from None
    own = encode(text, tokenizer)
    ids = tokenize(own, tokenizer, subject.prepend_bos)
    start, stop = _characters(text, tokenizer, len(own))
    front = np.zeros(len(ids) - len(own), np.int64)
    counted = np.ones(len(ids), bool)
    counted[[at for at in zero_positions(ids, tokenizer, parts.architecture.model_type) if at < len(ids)]] = False
    if not counted.any():
        raise InputError(f"{example.where} has {len(ids)} token, of which none is read; give a longer text")
    return Tokens(text, ids, np.concatenate([front, start]), np.concatenate([front, stop]), counted)


def _characters(text: str, tokenizer: Any, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each token stands in the text, by the tokenizer's own account, white space left out. A token that is part of a
    character stands where the character does.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CompatibilityError(
            f"{type(tokenizer).__name__} cannot say which characters a token is; load the model with its fast tokenizer"
        )
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    assert len(offsets) == n_tokens
    bare = [(text[start:stop], start, stop) for start, stop in offsets]
    start = [at + len(piece) - len(piece.lstrip()) if piece.strip() else at for piece, at, _ in bare]
    stop = [at - len(piece) + len(piece.rstrip()) if piece.strip() else at for piece, _, at in bare]
    return np.array(start, np.int64), np.array(stop, np.int64)


def activations(
    model: Any, examples: Sequence[Example | str], site: str, layer: int, **of_model: Any
) -> list[Activations]:
    """The stream at a site and layer on every token of every example, in their order.

    Args:
        model: As `Subject.of` takes it.
        examples: Texts.
        site: The place (`models/sites.py`).
        layer: The layer.
        **of_model: As `Subject.of` takes them.

    Returns:
        The activations, a text each.

    Examples:
        >>> from circuit_tracer.probes.reading import activations
        >>> activations(model, ["Dallas is in Texas"], "hook_resid_post", 3)[0].stream.shape
        torch.Size([5, 128])
    """
    subject = Subject.of(model, **of_model)
    texts = [tokens_of(example, subject) for example in examples]
    found = dict(read_texts(subject, texts, Reads((site, layer))))
    return [found[number] for number in range(len(texts))]


@torch.no_grad()
def read_texts(
    subject: Subject, texts: Sequence[Tokens], reads: Reads, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, Activations]]:
    """(number, activations) of every text, not in their order: those of similar length are read together."""
    for numbers in batches([len(text.ids) for text in texts], batch_tokens):
        yield from zip(numbers, read_batch(subject, [texts[number] for number in numbers], reads), strict=True)


def batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Numbers of texts to be read together, shortest first; a text by itself may be longer."""
    found: list[int] = []
    for number in np.argsort(lengths, kind="stable").tolist():
        if found and (len(found) + 1) * lengths[number] > batch_tokens:
            yield found
            found = []
        found.append(number)
    if found:
        yield found


@plain_torch()
@torch.no_grad()
def read_batch(subject: Subject, texts: Sequence[Tokens], reads: Reads) -> list[Activations]:
    """One pass over texts side by side. Raises CompatibilityError for a place or features that there are not, NumericalError
    for activations that are not finite.
    """
    parts = subject.parts
    wanted: list[Place] = []
    if reads.place is not None:
        require_vectors(site := site_of(parts, reads.place[0]))
        wanted.append((site.name, reads.place[1]))
    inputs = {layer: (_dictionary(subject, layer).feature_input_hook, layer) for layer in reads.layers}
    longest = max(len(text.ids) for text in texts)
    ids_BP = torch.stack([torch.cat([text.ids, text.ids[-1:].expand(longest - len(text.ids))]) for text in texts])
    with fast_attention(parts):
        found = read(parts, ids_BP, {*wanted, *inputs.values()}, own_attention=False)
    result = []
    for row, text in enumerate(texts):
        here = {place: x_BPD[row, : len(text.ids)].to(parts.compute_dtype) for place, x_BPD in found.items()}
        if not all(bool(torch.isfinite(x_PD).all()) for x_PD in here.values()):
            raise NumericalError(
                f"the model's activations on {text.text[:60]!r} are not finite. Check its weights, or load it in float32."
            )
        features = {layer: _active(subject, layer, here[place], text.counted) for layer, place in inputs.items()}
        read_by = {layer: here[place] for layer, place in inputs.items()}
        result.append(Activations(text, here[wanted[0]] if wanted else None, features, read_by))
    return result


def _dictionary(subject: Subject, layer: int) -> Transcoders:
    transcoders = subject.transcoders
    if transcoders is None:
        raise CompatibilityError("features are read, and there is no dictionary; name it (-t)")
    if layer not in transcoders.layers:
        raise CompatibilityError(f"features of layer {layer} are read; the dictionary has layers {transcoders.layers}")
    return transcoders


def _active(subject: Subject, layer: int, x_PD: Tensor, counted: np.ndarray) -> Selected:
    place = torch.from_numpy(np.flatnonzero(counted))
    transcoders = _dictionary(subject, layer)
    position, index, value = transcoders.encode_positions(layer, x_PD[place.to(x_PD.device)].to(transcoders.device))
    return place[position.cpu()], index.cpu(), value.cpu()


def columns(probe: Probe, found: Activations) -> Tensor:
    """(P, D) the numbers that a probe reads of a text: the stream's, then its features'."""
    n_pos = len(found.tokens.ids)
    parts = [] if found.stream is None else [found.stream.cpu()]
    if probe.features:
        dtype = next(iter(found.features.values()))[2].dtype
        features_PF = torch.zeros(n_pos, len(probe.features), dtype=dtype)
        by_layer: dict[int, list[tuple[int, int]]] = {}
        for column, (layer, feature) in enumerate(probe.features):
            by_layer.setdefault(layer, []).append((feature, column))
        for layer, pairs in by_layer.items():
            position, index, value = found.features[layer]
            feature_n, column_n = torch.tensor(sorted(pairs)).T.contiguous()
            at = torch.searchsorted(feature_n, index).clamp(max=len(feature_n) - 1)
            mine = feature_n[at] == index
            features_PF[position[mine], column_n[at[mine]]] = value[mine]
        parts.append(features_PF)
    return torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts], dim=1)


def pooled(values_PD: Tensor, counted: np.ndarray, pool: str) -> Tensor:
    """What is read of a text: (n, D) of its counted tokens, or (1, D) of all of them."""
    values_nD = values_PD[torch.from_numpy(np.flatnonzero(counted))]
    if pool == "last":
        return values_nD[-1:]
    if pool == "mean":
        return values_nD.mean(0, keepdim=True)
    return values_nD.amax(0, keepdim=True) if pool == "max" else values_nD


class Scored(NamedTuple):
    """Of one text.

    Attributes:
        score: Of the whole; of a probe that reads every token, the highest.
        tokens: (P,) of each by itself, nan where none is read; of a probe that reads a text as a whole, what it says of
            each token alone.
    """

    text: Tokens
    score: float
    tokens: Tensor


def score_texts(
    subject: Subject, probe: Probe, texts: Sequence[Tokens], batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, Scored]]:
    """(number, scores) of every text, not in their order. Raises CompatibilityError for a probe of another model."""
    probe.check(subject.parts, subject.transcoders)
    for number, found in read_texts(subject, texts, Reads.of(probe), batch_tokens):
        yield number, scored(probe, found)


def scored(probe: Probe, found: Activations) -> Scored:
    """The scores of a text that has been read."""
    values_PD, text = columns(probe, found), found.tokens
    tokens_P = probe.score(values_PD)
    tokens_P[torch.from_numpy(~text.counted)] = torch.nan
    whole = probe.score(pooled(values_PD, text.counted, probe.pool))
    return Scored(text, float(whole.max()), tokens_P)
