"""What to explain: salient logits, named tokens, ids, directions, differences, features, at any position.

A target is a read vector: one that reads the output of the final norm (`layer` = L), the encoder row of a feature, or vectors
that read the stream on its way (stream_targets.py). Weights may have either sign; influence uses their absolute value, and a
target with a negative weight is the same direction (its edges keep their own signs), so scores stay meaningful.

Letters: K targets, D d_model, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import number, whole
from circuit_tracer.attribution.attention_reads import attention_reads
from circuit_tracer.attribution.attribution_targets import (
    AttributionTargets,
    TargetSpec,
    compute_salient_logits,
    log_attribution_target_info,
)
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.stream_targets import (
    AttentionTarget,
    DirectionSum,
    DirectionTarget,
    StreamTarget,
    latent_target,
    read_vector,
    resolve_attention,
    resolve_direction,
    resolve_sum,
)
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.targets import CustomTarget, LogitTarget, TargetKind, TargetTable, feature_label
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.indices import from_the_front
from circuit_tracer.models.remembered import Remembered
from circuit_tracer.models.token_text import TokenTexts
from circuit_tracer.models.tokenization import single_token, token_strings
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

__all__ = [
    "AttentionTarget",
    "AttributionTargets",
    "CustomTarget",
    "DirectionSum",
    "DirectionTarget",
    "FeatureTarget",
    "LogitDifference",
    "LogitTarget",
    "TargetRows",
    "TargetSpec",
    "compute_salient_logits",
    "latent_target",
    "log_attribution_target_info",
    "resolve_targets",
]

LIKELIEST = 10  # tokens of the prediction that a graph keeps


class FeatureTarget(NamedTuple):
    """A feature's pre-activation at a position, as a target.

    Attributes:
        layer: Of the feature.
        position: Negative ones count from the end.
        feature_idx: Of the feature in its layer.
        weight: Factor on the row; influence takes its size.

    Examples:
        >>> from circuit_tracer import FeatureTarget, attribute
        >>> attribute(PROMPT, model, attribution_targets=[FeatureTarget(0, 7, 78)]).targets.feature(0)
        (0, 78)
    """

    layer: int
    position: int
    feature_idx: int
    weight: float = 1.0


class LogitDifference(NamedTuple):
    """logit(token) - logit(other), as one target; tokens by string or id.

    Attributes:
        token: By text or id.
        other: The one that is subtracted.
        weight: Factor on the row; influence takes its size.

    Examples:
        >>> from circuit_tracer import LogitDifference, attribute
        >>> attribute(PROMPT, model, attribution_targets=[LogitDifference("Austin", "Dallas")]).targets.label
        ['Austin - Dallas']
    """

    token: str | int
    other: str | int
    weight: float = 1.0


Target = (
    str
    | int
    | CustomTarget
    | FeatureTarget
    | LogitDifference
    | DirectionTarget
    | DirectionSum
    | AttentionTarget
    | StreamTarget
    | tuple[str, float, Tensor]
)


@dataclass(frozen=True)
class Aim:
    """What a trace explains; `attribute` describes each."""

    targets: Tensor | Sequence[Target] | None = None
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    position: int = -1

    @property
    def n_targets(self) -> int:
        """How many there will be, or at most."""
        return self.max_n_logits if self.targets is None else len(self.targets)


@dataclass(frozen=True)
class TargetRows:
    """K targets as the sweep takes them. prediction: what the model predicts where they are read (`_Reader.prediction`)."""

    table: TargetTable
    read_out: ReadOut
    prediction: dict[str, Any]


def resolve_targets(model: Traceable, network: FrozenNetwork, aim: Aim) -> TargetRows:
    """The targets that an aim means for this prompt.

    Raises InputError for unknown tokens, ids or features outside the model, vectors of the wrong width, bad thresholds.
    """
    position = from_the_front(aim.position, network.captured.n_pos)
    probability_V = torch.softmax(logits_at(model.parts, network.captured.final[position][None])[0], dim=-1)
    reader = _Reader(model, network, position, probability_V)
    if aim.targets is None:
        chosen = torch.topk(probability_V, min(aim.max_n_logits, model.parts.config.d_vocab))
        before = torch.cumsum(chosen.values, 0) - chosen.values
        count, *ids = torch.cat([(before < aim.desired_logit_prob).sum()[None], chosen.indices]).tolist()
        return reader.rows([reader.token(token_id) for token_id in ids[: max(1, count)]])
    items = aim.targets.tolist() if isinstance(aim.targets, Tensor) else list(aim.targets)
    if not items:
        raise InputError(
            "attribution_targets is empty; name at least one target, or pass None for the most probable tokens"
        )
    return reader.rows([reader.read(item) for item in items])


def check_logit_options(d_vocab: int, max_n_logits: int, desired_logit_prob: float) -> None:
    """Refuse `max_n_logits` outside 1..V and a probability outside [0, 1]; with 0, the likeliest token is left."""
    if not 1 <= max_n_logits <= d_vocab:
        raise InputError(f"max_n_logits is {max_n_logits}; it must lie between 1 and the vocabulary size {d_vocab}")
    if not 0 <= desired_logit_prob <= 1:
        raise InputError(f"desired_logit_prob is {desired_logit_prob}; it must lie in [0, 1]")


_MEANS = Remembered[tuple[Tensor, float]]()  # of an unembedding's rows and bias


class _Item(NamedTuple):
    label: str
    layer: int
    position: int
    weight: float
    token_id: int | None  # None: give it a virtual id
    kind: TargetKind
    vector: Tensor
    constant: float
    reads: StreamReads | None = None  # then vector is zero


class _Reader:
    """Turns one item of `attribution_targets` after the other into a read vector."""

    def __init__(self, model: Traceable, network: FrozenNetwork, position: int, probability_V: Tensor) -> None:
        parts = model.parts
        self.parts, self.network, self.transcoders, self.tokenizer = parts, network, model.transcoders, model.tokenizer
        self.attention = model.attention
        self.position, self.probability, self.weight = position, probability_V, probability_V.cpu()
        self.texts = TokenTexts.of(model.tokenizer)
        weight = parts.unembed.weight
        bias: Tensor | None = getattr(parts.unembed, "bias", None)
        self.unembed, self.bias = weight, bias
        self.mean, self.mean_bias = _MEANS.value(
            parts.unembed,
            [weight] if bias is None else [weight, bias],
            parts.compute_dtype,
            lambda: (
                weight.mean(0, dtype=parts.compute_dtype),
                0.0 if bias is None else float(bias.cpu().double().mean()),
            ),
        )

    def rows(self, items: list[_Item]) -> TargetRows:
        d_vocab, virtual = self.parts.config.d_vocab, 0
        ids = []
        for item in items:
            ids.append(d_vocab + virtual if item.token_id is None else item.token_id)
            virtual += item.token_id is None
        table = TargetTable(
            label=[item.label for item in items],
            layer=torch.tensor([item.layer for item in items]),
            position=torch.tensor([item.position for item in items]),
            weight=torch.tensor([item.weight for item in items], dtype=self.parts.compute_dtype),
            token_id=torch.tensor(ids),
            kind=[item.kind for item in items],
        )
        stream = self._stream(items, lambda item: item.reads)
        table.reads = self._stream(items, self._own_reads)
        constant = torch.tensor([item.constant for item in items], dtype=self.parts.compute_dtype)
        vector = torch.stack([item.vector for item in items])
        return TargetRows(table, ReadOut(table.layer, table.position, vector, constant, stream), self.prediction())

    def prediction(self) -> dict[str, Any]:
        """The likeliest tokens with their probabilities, and the entropy (nats) of all; JSON values."""
        p_V = self.probability.double()
        likeliest = torch.topk(p_V, min(LIKELIEST, len(p_V)))
        ids = likeliest.indices.tolist()
        entropy, *values = torch.cat([torch.special.entr(p_V).sum()[None], likeliest.values]).tolist()
        return {
            "position": self.position,
            "tokens": [self._text(token) for token in ids],
            "token_ids": ids,
            "probabilities": values,
            "entropy": entropy,
        }

    def _stream(self, items: list[_Item], reads_of: Callable[[_Item], StreamReads | None]) -> StreamReads | None:
        """Reads of the items that have some, by the number of the item."""
        found = [(row, reads) for row, item in enumerate(items) if (reads := reads_of(item)) is not None]
        each = [replace(reads, row=torch.full_like(reads.row, row)) for row, reads in found]
        return StreamReads.joined(each) if each else None

    def _own_reads(self, item: _Item) -> StreamReads | None:
        """What a graph keeps of a target that no token id says again."""
        if item.reads is not None or item.kind == "logit":
            return item.reads
        position, last = torch.tensor([item.position], device=item.vector.device), item.layer == self.network.n_layers
        if last:
            vector = self.network.final_norm.adjoint_at(item.vector[None], position)
        else:
            vector = self.network.read_adjoint(item.layer, item.vector[None], position)
        row, layer, entering = torch.zeros(1, dtype=torch.int64), torch.tensor([item.layer]), torch.tensor([last])
        return StreamReads(row, layer, entering, position.cpu(), vector.cpu())

    def read(self, item: Target) -> _Item:
        if isinstance(item, bool):
            raise InputError(f"target {item!r} is not a token, id, direction or feature")
        if isinstance(item, str):
            return self.token(self._token_id(item))
        if isinstance(item, int):
            return self.token(self._check_id(item))
        if isinstance(item, FeatureTarget):
            return self._feature(item)
        if isinstance(item, LogitDifference):
            return self._difference(item)
        if isinstance(item, DirectionTarget):
            return self._in_stream(resolve_direction(self.network, item))
        if isinstance(item, DirectionSum):
            return self._in_stream(resolve_sum(self.network, item))
        if isinstance(item, AttentionTarget):
            texts = token_strings(self.network.captured.ids, self.tokenizer)
            return self._in_stream(resolve_attention(self.network, item, texts))
        if isinstance(item, StreamTarget):
            item.reads.check(1, self.network.n_layers, self.network.captured.n_pos, len(self.mean))
            return self._in_stream(item)
        if isinstance(item, tuple) and len(item) == 3:
            return self._direction(CustomTarget(*item))
        raise InputError(
            f"target {item!r} is not understood; use a token string, a token id, CustomTarget(label, weight, vector), "
            "FeatureTarget(layer, position, feature), LogitDifference(token, other), DirectionTarget(vector, site, layer, "
            "position) or AttentionTarget(layer, head, query, key)"
        )

    def token(self, token_id: int) -> _Item:
        vector = self.unembed[token_id].to(self.mean.dtype) - self.mean
        weight = float(self.weight[token_id])
        return _Item(
            self._text(token_id),
            self.network.n_layers,
            self.position,
            weight,
            token_id,
            "logit",
            vector,
            self._bias(token_id),
        )

    def _difference(self, item: LogitDifference) -> _Item:
        first, second = (
            self._token_id(t) if isinstance(t, str) else self._check_id(whole(t, "a token of a difference"))
            for t in (item.token, item.other)
        )
        if first == second:
            raise InputError(f"target {tuple(item)} is the difference of token {first} with itself; name two tokens")
        vector = self.unembed[first].to(self.mean.dtype) - self.unembed[second].to(self.mean.dtype)
        label = f"{self._text(first)} - {self._text(second)}"
        constant = self._bias(first) - self._bias(second)
        return _Item(
            label, self.network.n_layers, self.position, self._weight(item.weight), None, "direction", vector, constant
        )

    def _direction(self, item: CustomTarget) -> _Item:
        vector = read_vector(item.vec, item.token_str, self.mean)
        weight = self._weight(item.prob)
        return _Item(str(item.token_str), self.network.n_layers, self.position, weight, None, "direction", vector, 0.0)

    def _in_stream(self, found: StreamTarget) -> _Item:
        zero, weight = torch.zeros_like(self.mean), self._weight(found.weight)
        place = found.layer, found.position
        return _Item(found.label, *place, weight, None, found.kind, zero, found.constant, found.reads)

    def _feature(self, item: FeatureTarget) -> _Item:
        layer, index = whole(item.layer, "a target's layer"), whole(item.feature_idx, "a target's feature")
        position = from_the_front(item.position, self.network.captured.n_pos)
        if self.attention is not None and index >= self.transcoders.d_transcoder:
            return self._of_attention(self.attention, layer, position, index, item.weight)
        if not (0 <= layer < self.transcoders.n_layers and 0 <= index < self.transcoders.d_transcoder):
            raise InputError(
                f"target feature (layer {layer}, index {index}) does not exist: the transcoder has {self.transcoders.n_layers} "
                f"layers of {self.transcoders.d_transcoder} features"
            )
        place = torch.tensor([index]), torch.tensor([position])
        rows, bias = self.transcoders.reads(layer, *place, partial(self.network.transcoder_input, layer))
        vector = rows[0].to(device=self.mean.device, dtype=self.mean.dtype)
        return _Item(
            feature_label(layer, index),
            layer,
            position,
            self._weight(item.weight),
            None,
            "feature",
            vector,
            float(bias[0]),
        )

    def _of_attention(self, dictionary: TranscoderSet, layer: int, position: int, index: int, weight: float) -> _Item:
        """A feature of attention: it reads the stream that enters its layer, wherever it looks."""
        one, own = torch.zeros(1, dtype=torch.int64), torch.tensor([index - self.transcoders.d_transcoder])
        if layer not in dictionary.layers or int(own) >= dictionary.n_features(layer):
            raise InputError(
                f"target feature (layer {layer}, index {index}) does not exist: the dictionary of attention has layers "
                f"{', '.join(map(str, dictionary.layers))}, with features from {self.transcoders.d_transcoder} to "
                f"{self.transcoders.d_transcoder + dictionary.d_transcoder - 1}"
            )
        frozen, nothing = FrozenAttention(self.network, dictionary), torch.zeros_like(self.network.captured.embedding)
        reads = attention_reads(dictionary, one, one + layer, one + position, own, nothing.dtype)
        n_pos = position + 1
        vector = frozen.back(layer, reads, n_pos)[0]
        constant = frozen.pre_activations(layer, frozen.input(layer, nothing, constants=True), reads)
        places = (
            one.expand(n_pos),
            (one + layer).expand(n_pos),
            torch.ones(n_pos, dtype=torch.bool),
            torch.arange(n_pos),
        )
        found = StreamReads(*places, vector.cpu())
        return self._in_stream(StreamTarget(feature_label(layer, index), found, float(constant), "feature", weight))

    def _bias(self, token_id: int) -> float:
        return 0.0 if self.bias is None else float(self.bias[token_id]) - self.mean_bias

    def _text(self, token_id: int) -> str:
        return self.texts.alone(token_id)

    def _token_id(self, text: str) -> int:
        return single_token(text, self.tokenizer)

    def _check_id(self, token_id: int) -> int:
        if not 0 <= token_id < self.parts.config.d_vocab:
            raise InputError(f"target id {token_id} is outside the vocabulary 0..{self.parts.config.d_vocab - 1}")
        return int(token_id)

    def _weight(self, weight: float) -> float:
        if not abs(number(weight, "a target's weight")) <= torch.finfo(self.mean.dtype).max:
            raise InputError(f"a target's weight must be finite, got {weight}")
        return float(weight)
