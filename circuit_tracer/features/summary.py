"""What is known of the features of one layer after some text, in a form that can be merged.

Merging is associative and its result does not depend on how the text was cut: counts add up; the examples kept are the
first of a total order. Texts that agree up to and with the token in question give the same activation, so examples with
the same left context (key) count as one.

Letters: n features seen, m examples, W window (tokens around an example), B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

BINS = 64  # of a histogram, equally wide from 0 to a power of two; half of them or more are in use
NO_EXPONENT = -1000  # of a feature without a positive activation (TopK keeps negative ones)


@dataclass(frozen=True)
class Examples:
    """Tokens on which features were active, sorted by feature and then from the best.

    feature (m,) int64. value (m,) float32: the activation. place (m,) int64: number of the token in the corpus. key (m,)
    uint64: hash of the window up to and with the token. tokens (m, W) int32: ids around it, -1 where the sequence has
    ended. acts (m, W) float32: the feature's activations there.
    """

    feature: np.ndarray
    value: np.ndarray
    place: np.ndarray
    key: np.ndarray
    tokens: np.ndarray
    acts: np.ndarray

    def take(self, index: np.ndarray) -> Examples:
        """Some of them, in that order."""
        return Examples(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """All of several, one behind the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class Keep:
    """How many examples of a feature are kept: strongest ones, and ones drawn evenly from all distinct contexts."""

    top: int
    sample: int


@dataclass(frozen=True)
class LayerSummary:
    """Features of one layer that were active, ascending by ``feature`` (n,) int64.

    count (n,) int64: tokens on which it was. most, least (n,) float32: its range. exponent (n,) int64 and bins (n, B)
    int64: how often it was in [i, i+1) * 2^exponent / B, negative activations in the first. top, sample: see Keep.
    """

    feature: np.ndarray
    count: np.ndarray
    most: np.ndarray
    least: np.ndarray
    exponent: np.ndarray
    bins: np.ndarray
    top: Examples
    sample: Examples


def merge(first: LayerSummary, second: LayerSummary, keep: Keep) -> LayerSummary:
    """What is known after both."""
    feature, where = np.unique(np.concatenate([first.feature, second.feature]), return_inverse=True)
    count = np.zeros(len(feature), np.int64)
    np.add.at(count, where, np.concatenate([first.count, second.count]))
    most = np.full(len(feature), -np.inf, np.float32)
    np.maximum.at(most, where, np.concatenate([first.most, second.most]))
    least = np.full(len(feature), np.inf, np.float32)
    np.minimum.at(least, where, np.concatenate([first.least, second.least]))
    exponent = np.full(len(feature), NO_EXPONENT, np.int64)
    exponents = np.concatenate([first.exponent, second.exponent])
    np.maximum.at(exponent, where, exponents)
    bins = np.zeros((len(feature), BINS), np.int64)
    np.add.at(bins, where, _coarser(np.concatenate([first.bins, second.bins]), exponent[where] - exponents))
    top, sample = (Examples.joined([getattr(part, name) for part in (first, second)]) for name in ("top", "sample"))
    return LayerSummary(
        feature,
        count,
        most,
        least,
        exponent,
        bins,
        top.take(strongest(top.feature, top.value, top.place, top.key, keep.top)),
        sample.take(drawn(sample.feature, sample.value, sample.place, sample.key, keep.sample)),
    )


def strongest(feature: np.ndarray, value: np.ndarray, place: np.ndarray, key: np.ndarray, number: int) -> np.ndarray:
    """Indices of the ``number`` largest values of each feature in distinct contexts; of equal ones the earliest."""
    distinct = _distinct(feature, value, place, key)
    order = distinct[np.lexsort((place[distinct], -value[distinct], feature[distinct]))]
    return order[_rank(feature[order]) < number]


def drawn(feature: np.ndarray, value: np.ndarray, place: np.ndarray, key: np.ndarray, number: int) -> np.ndarray:
    """Indices of ``number`` contexts of each feature, drawn evenly: those whose hashes are smallest."""
    distinct = _distinct(feature, value, place, key)
    lot = mixed(key[distinct] ^ mixed(feature[distinct].astype(np.uint64)))
    order = np.lexsort((place[distinct], lot, feature[distinct]))
    chosen = distinct[order]
    return chosen[_rank(feature[chosen]) < number]


def exponents_of(most: np.ndarray) -> np.ndarray:
    """The least e with most < 2^e, int64."""
    return np.where(most > 0, np.frexp(most)[1].astype(np.int64), NO_EXPONENT)


def bin_of(value: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """The bin that an activation falls into, int64."""
    scaled = np.ldexp(np.maximum(value, 0).astype(np.float64), np.where(exponent > NO_EXPONENT, 6 - exponent, 0))
    number: np.ndarray = np.minimum(scaled, BINS - 1).astype(np.int64)
    return number


def mixed(number: np.ndarray) -> np.ndarray:
    """uint64 hashed (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = number + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _distinct(feature: np.ndarray, value: np.ndarray, place: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Indices of the strongest (then earliest) entry of each feature and context."""
    order = np.lexsort((place, -value, key, feature))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(feature[order]) != 0) | (key[order][1:] != key[order][:-1])
    return order[new]


def _rank(feature: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of one feature."""
    new = np.ones(len(feature), bool)
    new[1:] = feature[1:] != feature[:-1]
    start = np.flatnonzero(new)
    return np.arange(len(feature)) - np.repeat(start, np.diff(np.append(start, len(feature))))


def _coarser(bins: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Rows of bins that become 2^steps times as wide: bin i goes to i >> steps."""
    wide = np.zeros_like(bins)
    target = np.arange(BINS)[None] >> np.minimum(steps, BINS)[:, None]
    np.add.at(wide, (np.arange(len(bins))[:, None], target), bins)
    return wide
