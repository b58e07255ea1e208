"""The rows that a probe learns from: one a token, or one a text, with all that is learned from them side by side.

| columns | what they are | which rows |
|---|---|---|
| stream | the residual stream at the probe's place | dense |
| features | activations of a dictionary's features | sparse |
| both | one behind the other, the stream less its mean | sparse |
| random dictionary | those of a random dictionary of the same shape, as many of them active | sparse |
| bag of words | of a text: how often each word stands in it; of a token: which it is, and the two in front of it | sparse |

Letters: N rows, M columns, D d_model, F features of all layers read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.classify.folds import Array
from circuit_tracer.errors import InputError
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.probe import Pool
from circuit_tracer.probes.reading import Activations, Reads, Subject, Tokens, batches, pooled, read_batch, tokens_of
from circuit_tracer.progress import Progress, silent
from circuit_tracer.transcoders.random_dictionary import RandomDictionary

Columns = Literal["stream", "features", "both"]
LEARNED: tuple[Columns, ...] = get_args(Columns)
RANDOM, WORDS = "random dictionary", "bag of words"
CALIBRATED_ON = 4096  # tokens that set the random dictionary's thresholds
WORDS_BEHIND = 3  # tokens that the words of a token are: itself and those in front of it
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Table:
    """positive (N,) bool; text (N,) its number in ``texts``; position (N,) of its token, -1 for a whole text. columns: by name,
    (N, M). seconds: a token, by what was done. features: (layer, feature) of each column of features.
    """

    texts: list[Tokens]
    examples: list[Example]
    positive: Array
    text: Array
    position: Array
    columns: dict[str, Any]
    seconds: dict[str, float]
    layers: tuple[tuple[int, int], ...]  # (layer, how many features)
    centre: Array  # (D,) what the stream of both is less by

    @property
    def group(self) -> Array:
        """(N,) the group of each row, by number; an example without one is a group by itself."""
        return groups_of(self.examples)[self.text]

    @property
    def positive_texts(self) -> Array:
        """(texts,) bool: those with a positive row."""
        found = np.zeros(len(self.texts), bool)
        np.logical_or.at(found, self.text, self.positive)
        return found

    def feature(self, column: int) -> tuple[int, int]:
        """(layer, feature) of a column of features."""
        for layer, count in self.layers:
            if column < count:
                return layer, column
            column -= count
        raise IndexError(column)


def groups_of(examples: Sequence[Example]) -> Array:
    """(texts,) the group of each, by number; an example without one is a group by itself."""
    names: dict[Any, int] = {}
    own = [(index,) if example.group is None else example.group for index, example in enumerate(examples)]
    return np.array([names.setdefault(name, len(names)) for name in own], dtype=int)


def gather(
    subject: Subject,
    examples: Sequence[Example],
    place: tuple[str, int],
    layers: Sequence[int],
    pool: Pool,
    *,
    baselines: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Table:
    """Run the model over the examples. layers: whose features are read; none: no columns of features.

    Raises InputError for an example that cannot be read, or spans with a pool that is not "token".
    """
    if not examples:
        raise InputError("there are no examples")
    texts = [tokens_of(example, subject) for example in examples]
    rows = [
        _rows(number, text, example, pool) for number, (text, example) in enumerate(zip(texts, examples, strict=True))
    ]
    positive, text, position = (np.concatenate(column) for column in zip(*rows, strict=True))
    reads = Reads(place, tuple(layers))
    columns, seconds = _read(subject, texts, reads, pool, progress)
    if layers and baselines:
        random = random_subject(subject, texts, layers, seed)
        columns[RANDOM] = _read(random, texts, Reads(None, tuple(layers)), pool, progress)[0]["features"]
    if baselines:
        started = time.perf_counter()
        columns[WORDS] = _words(texts) if pool != "token" else _token_words(texts)
        seconds[WORDS] = (time.perf_counter() - started) / _n_tokens(texts)
    counts = tuple((layer, subject.transcoders.n_features(layer)) for layer in layers) if subject.transcoders else ()
    return Table(texts, list(examples), positive, text, position, columns, seconds, counts, columns["stream"].mean(0))


def _rows(number: int, text: Tokens, example: Example, pool: Pool) -> tuple[Array, Array, Array]:
    """(positive, text, position) of the rows of a text."""
    if pool != "token":
        if example.spans:
            raise InputError(f"{example.where} has spans, and the pool {pool!r} reads texts whole; use pool 'token'")
        return np.array([bool(example.label)]), np.array([number]), np.array([-1])
    at = np.flatnonzero(text.counted)
    if example.spans is None:
        return np.full(len(at), bool(example.label)), np.full(len(at), number), at
    inside = text.within(example.spans)
    for start, end in example.spans:
        if not text.within([(start, end)])[at].any():
            raise InputError(
                f"{example.where}: no token that is read lies in the span [{start}, {end}], {text.text[start:end]!r}; give a "
                "span with a character that is no white space"
            )
    return inside[at], np.full(len(at), number), at


def _read(
    subject: Subject, texts: list[Tokens], reads: Reads, pool: Pool, progress: Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """Columns by name, in the order of texts, and seconds a token."""
    stream: list[Array] = [np.empty(0)] * len(texts)
    features: list[Any] = [None] * len(texts)
    spent, done = 0.0, 0
    for numbers in batches([len(text.ids) for text in texts]):
        started = time.perf_counter()
        found = read_batch(subject, [texts[number] for number in numbers], reads)
        spent += time.perf_counter() - started
        for number, each in zip(numbers, found, strict=True):
            if each.stream is not None:
                stream[number] = pooled(each.stream.float().cpu(), each.tokens.counted, pool).numpy()
            if reads.layers:
                features[number] = _sparse(subject, each, reads.layers, pool)
        done += len(numbers)
        progress("reading", done, len(texts))
    columns: dict[str, Any] = {} if reads.place is None else {"stream": np.concatenate(stream)}
    if reads.layers:
        from scipy.sparse import csr_array, hstack, vstack

        columns["features"] = vstack(features, format="csr")
        if "stream" in columns:
            centred = columns["stream"] - columns["stream"].mean(0)
            columns["both"] = hstack([csr_array(centred), columns["features"]], format="csr")
    return columns, {"reading": spent / _n_tokens(texts)}


def _sparse(subject: Subject, found: Activations, layers: Sequence[int], pool: Pool) -> Any:
    """(n, F) features of a text, pooled."""
    from scipy.sparse import csr_array

    assert subject.transcoders is not None
    row, column, value, start = [], [], [], 0
    for layer in layers:
        position_n, index_n, value_n = (each.numpy() for each in found.features[layer])
        row.append(position_n)
        column.append(index_n + start)
        value.append(value_n.astype(np.float32))
        start += subject.transcoders.n_features(layer)
    shape = len(found.tokens.ids), start
    whole = csr_array((np.concatenate(value), (np.concatenate(row), np.concatenate(column))), shape=shape)
    rows = whole[np.flatnonzero(found.tokens.counted)]
    if pool == "last":
        return rows[[-1]]
    if pool == "mean":
        return csr_array(rows.mean(0)[None])
    return csr_array(rows.max(0).toarray()[None]) if pool == "max" else rows


def random_subject(subject: Subject, texts: Sequence[Tokens], layers: Sequence[int], seed: int) -> Subject:
    """The same model with a random dictionary, as many of whose features are active on a sample of the texts."""
    transcoders = subject.transcoders
    assert transcoders is not None
    chosen, count = [], 0
    for number in np.random.default_rng(seed).permutation(len(texts)).tolist():
        if count < CALIBRATED_ON:
            chosen.append(texts[number])
            count += int(texts[number].counted.sum())
    inputs = {layer: _inputs(subject, chosen, (transcoders.feature_input_hook, layer)) for layer in layers}
    random = RandomDictionary(transcoders, seed, next(iter(inputs.values())).new_empty(0))
    for layer, x_ND in inputs.items():
        random.centre_(layer, x_ND)
        random.calibrate_(layer, x_ND, len(transcoders.encode_positions(layer, x_ND)[1]))
    return Subject(subject.parts, subject.tokenizer, random, subject.prepend_bos)


def _inputs(subject: Subject, texts: list[Tokens], place: tuple[str, int]) -> Tensor:
    """(N, D) what a dictionary reads of counted tokens."""
    found = [
        pooled(each.stream, each.tokens.counted, "token")
        for numbers in batches([len(text.ids) for text in texts])
        for each in read_batch(subject, [texts[number] for number in numbers], Reads(place))
        if each.stream is not None
    ]
    return torch.cat(found)


def _n_tokens(texts: Sequence[Tokens]) -> int:
    return sum(len(text.ids) for text in texts)


def _words(texts: Sequence[Tokens]) -> Any:
    """Counts of the words and marks of texts; a word of no text to learn from never varies there, and gets no weight."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=_WORD.pattern, dtype=np.float32)
    return counter.fit_transform([text.text for text in texts]).tocsr()


def _token_words(texts: Sequence[Tokens]) -> Any:
    """Which token it is, and which stand in front of it, each a column of its own."""
    from scipy.sparse import csr_array

    known: dict[tuple[int, int], int] = {}
    columns, starts = [], [0]
    for text in texts:
        ids = text.ids.tolist()
        for at in np.flatnonzero(text.counted).tolist():
            words = [(back, ids[at - back]) for back in range(min(WORDS_BEHIND, at + 1))]
            columns += [known.setdefault(word, len(known)) for word in words]
            starts.append(len(columns))
    return csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(len(starts) - 1, len(known)))
