"""A stretch of the corpus: its tokens, and which features were active on which of them, until it is summarised.

Letters: T tokens of the stretch, n entries (feature active on token), W window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuit_tracer.features.summary import (
    BINS,
    Examples,
    Keep,
    LayerSummary,
    bin_of,
    drawn,
    exponents_of,
    mixed,
    strongest,
)

_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplication by it can be undone modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


@dataclass(frozen=True)
class Window:
    """Tokens shown of an example: so many before it, itself, and so many behind."""

    before: int
    after: int


class Segment:
    """Grows by batches of whole sequences; ``first`` is the number of its first token in the corpus."""

    def __init__(self, n_layers: int, first: int) -> None:
        self.first = first
        self.n_tokens = self.n_entries = 0
        self._sequences: list[np.ndarray] = []
        self._active: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(n_layers)]

    def add(self, sequences: list[np.ndarray], active: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Sequences, and for every layer (token, feature, value), each (n,); tokens count through the sequences."""
        for layer, (token, feature, value) in enumerate(active):
            entry = (token + self.n_tokens, feature.astype(np.int32), value.astype(np.float32))
            self._active[layer].append(entry)
            self.n_entries += len(token)
        self._sequences += sequences
        self.n_tokens += sum(map(len, sequences))

    def summaries(self, window: Window, keep: Keep) -> list[LayerSummary]:
        """What is known of each layer's features after this stretch."""
        text = _Text.of(self._sequences, window)
        return [self._summary(layer, text, keep) for layer in range(len(self._active))]

    def _summary(self, layer: int, text: _Text, keep: Keep) -> LayerSummary:
        columns = zip(*self._active[layer], strict=True)
        token, owner, value = (np.concatenate(column) for column in columns)
        order = np.lexsort((token, owner))
        token, owner, value = token[order].astype(np.int64), owner[order].astype(np.int64), value[order]
        feature, start = np.unique(owner, return_index=True)
        count = np.diff(np.append(start, len(owner)))
        most = np.maximum.reduceat(value, start) if len(start) else value
        least = np.minimum.reduceat(value, start) if len(start) else value
        exponent = exponents_of(most)
        row = np.repeat(np.arange(len(feature)), count)
        flat = np.bincount(row * BINS + bin_of(value, exponent[row]), minlength=len(feature) * BINS)
        peaks = _peaks(owner, text.sequence[token], value)
        place, key = token + self.first, text.key[token]
        top = peaks[strongest(owner[peaks], value[peaks], place[peaks], key[peaks], keep.top)]
        sample = drawn(owner, value, place, key, keep.sample)

        def examples(index: np.ndarray) -> Examples:
            tokens, acts = text.around(index, token, owner, value)
            return Examples(owner[index], value[index], place[index], key[index], tokens, acts)

        bins = flat.reshape(len(feature), BINS)
        return LayerSummary(feature, count, most, least, exponent, bins, examples(top), examples(sample))


def _peaks(owner: np.ndarray, sequence: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Index of the largest (then first) value of each feature in each sequence; entries are sorted by feature, token."""
    order = np.lexsort((np.arange(len(owner)), -value, sequence, owner))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(owner[order]) != 0) | (np.diff(sequence[order]) != 0)
    return order[new]


@dataclass(frozen=True)
class _Text:
    """ids (T,) int32, sequence (T,): number of each token's sequence, key (T,) uint64: hash of its left context."""

    ids: np.ndarray
    sequence: np.ndarray
    key: np.ndarray
    window: Window

    @classmethod
    def of(cls, sequences: list[np.ndarray], window: Window) -> _Text:
        keys = [_left_contexts(ids, window.before) for ids in sequences]
        numbers = np.repeat(np.arange(len(sequences)), [len(ids) for ids in sequences])
        return cls(np.concatenate(sequences).astype(np.int32), numbers, np.concatenate(keys), window)

    def around(
        self, index: np.ndarray, token: np.ndarray, owner: np.ndarray, value: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (m, W) and the feature's activations (m, W) around the entries ``index`` (m,) of sorted columns."""
        n_tokens = len(self.ids)
        place = token[index][:, None] + np.arange(-self.window.before, self.window.after + 1)[None]
        inside = (place >= 0) & (place < n_tokens)
        place = np.clip(place, 0, n_tokens - 1)
        inside &= self.sequence[place] == self.sequence[token[index]][:, None]
        entries = owner * n_tokens + token
        wanted = owner[index][:, None] * n_tokens + place
        found = np.minimum(np.searchsorted(entries, wanted), max(0, len(entries) - 1))
        acts = np.where(inside & (entries[found] == wanted), value[found], np.float32(0))
        return np.where(inside, self.ids[place], np.int32(-1)), acts


def _left_contexts(ids: np.ndarray, before: int) -> np.ndarray:
    """Hashes (P,) uint64 of each token with up to ``before`` tokens in front of it, and of how many there are."""
    with np.errstate(over="ignore"):
        symbols, powers, inverses = mixed(ids.astype(np.uint64)), _powers(_BASE, len(ids)), _powers(_INVERSE, len(ids))
        rolling = np.zeros(len(ids) + 1, np.uint64)  # rolling[i]: sum of symbol_j * base^j, j < i
        rolling[1:] = np.add.accumulate(symbols * powers)
        end = np.arange(1, len(ids) + 1)
        begin = np.maximum(0, end - before - 1)
        # back to the power 0, so that equal windows hash alike wherever they stand
        return mixed((rolling[end] - rolling[begin]) * inverses[begin] ^ (end - begin).astype(np.uint64))


def _powers(base: int, number: int) -> np.ndarray:
    powers = np.full(number, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
