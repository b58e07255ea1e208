"""Feature pages: one pass over a corpus that says, for every feature, where it is active and what it does.

The pass can be killed at any moment and run again: it goes on behind the last finished stretch and ends with the same bytes.
Memory holds one batch of activations, one stretch of the corpus (ENTRIES activations of features) and what is known of one
layer; all else is on disk.

Letters: B sequences, P positions, n tokens, L layers, D d_model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuit_tracer.attribution.fit import warn_of_misfit
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.features.build_folder import BuildFolder
from circuit_tracer.features.folder import INDEX, MANIFEST, read_manifest, write_index, write_layer
from circuit_tracer.features.logits import logit_effects, vocabulary_of
from circuit_tracer.features.record import LayerRecords
from circuit_tracer.features.segment import Segment, Window
from circuit_tracer.features.summary import Keep
from circuit_tracer.files import claimed, require_writable_folder
from circuit_tracer.files.digests import write_sealed
from circuit_tracer.fingerprint import (
    VERSION,
    model_fingerprint,
    require_same,
    tokenizer_fingerprint,
    transcoder_fingerprint,
)
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.run import fast_attention
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.token_text import TokenTexts
from circuit_tracer.progress import Progress, silent
from circuit_tracer.text.corpus import Corpus
from circuit_tracer.text.position import require_position
from circuit_tracer.text.special import SpecialTokens

ENTRIES = 2**23  # activations of features held before they are summarised
WORKING_FOLDER = ".build"

Wanted = Mapping[int, np.ndarray]  # layer -> ascending indices of features


@dataclass(frozen=True)
class BuildSettings:
    """How much to read, and how much to keep of a feature.

    Attributes:
        tokens: Read at most, None for all.
        top: Examples a feature: the strongest ones.
        sample: Examples a feature: drawn evenly from all its distinct contexts.
        before: Tokens in front of an example.
        after: Tokens behind it.
        logits: Tokens listed on each side.
        batch_tokens: Tokens that the model reads at once.
    """

    tokens: int | None = 1_000_000
    top: int = 12
    sample: int = 20
    before: int = 24
    after: int = 8
    logits: int = 10
    batch_tokens: int = 4096


@plain_torch()
def build_features(
    model: Traceable,
    corpus: Corpus,
    folder: str | Path,
    settings: BuildSettings | None = None,
    *,
    wanted: Wanted | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Write the features of a model's transcoders, as they are active on a corpus, into ``folder``.

    Goes on where an earlier call with the same arguments was interrupted; returns at once when it was not.

    Args:
        model: The replacement model.
        corpus: What to read (`open_corpus`).
        folder: Where to write.
        settings: How much to read, and how many examples to keep.
        wanted: Only these features (`wanted.features_of_graphs`); None: all.
        name: What the records call the transcoders; default their scan.
        progress: Called with (stage, done, total).

    Returns:
        The folder that was written.

    Raises:
        CompatibilityError: When the folder holds something else.
        InputError: When the corpus has no token that counts, another process builds in the folder, or all neurons of a
            model are asked for.
    """
    settings = settings or BuildSettings()
    if wanted is None and model.transcoders.exact:
        raise InputError(
            "every neuron is active on every token, so pages are built for those of graphs: name them (--graph; "
            "wanted=features_of_graphs([...]))"
        )
    target = require_writable_folder(folder)
    working = require_writable_folder(target / WORKING_FOLDER)
    with claimed(working, "builds features in"):
        _build(model, corpus, target, settings, wanted, name, progress)
    shutil.rmtree(working, ignore_errors=True)
    return target


def _build(
    model: Traceable,
    corpus: Corpus,
    target: Path,
    settings: BuildSettings,
    wanted: Wanted | None,
    name: str | None,
    progress: Progress,
) -> None:
    identity = _identity(model, corpus, settings, wanted, name)
    if (target / MANIFEST).is_file():
        found = read_manifest(target).get("settings")
        require_same(found, identity, f"the folder {target}", "Choose another folder, or remove it.")
    else:
        keep = Keep(settings.top, settings.sample)
        working = BuildFolder(target / WORKING_FOLDER, identity, model.transcoders.n_layers, keep)
        if not working.progress["complete"]:
            _read_corpus(model, corpus, settings, wanted, working, progress)
        _write(model, settings, wanted, identity, working, target, progress)


def _identity(
    model: Traceable, corpus: Corpus, settings: BuildSettings, wanted: Wanted | None, name: str | None
) -> dict[str, Any]:
    """What the bytes of a build follow from."""
    transcoders = model.transcoders
    scan = name or transcoders.scan or transcoders.kind
    if wanted is None:
        features = "all"
    else:
        digest = hashlib.sha256(b"".join(wanted[layer].astype("<i8").tobytes() for layer in sorted(wanted)))
        features = f"{sum(map(len, wanted.values()))} chosen, {digest.hexdigest()[:16]}"
    return {
        "transcoders": scan if isinstance(scan, str) else scan[0],
        "dictionary": transcoder_fingerprint(transcoders),
        "model": model_fingerprint(model.parts),
        "fingerprint_version": VERSION,
        "dtypes": [model.parts.config.dtype, str(transcoders.dtype).removeprefix("torch.")],
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
        "documents": corpus.documents.fingerprint(),
        "sequences": type(corpus).__name__,
        "context_length": corpus.context_length,
        "features": features,
        **asdict(settings),
    }


def _read_corpus(
    model: Traceable,
    corpus: Corpus,
    settings: BuildSettings,
    wanted: Wanted | None,
    working: BuildFolder,
    progress: Progress,
) -> None:
    """Read the corpus to its end, or to as many tokens as are asked for, stretch by stretch."""
    if working.progress["corpus"] is not None:
        require_position(working.progress["corpus"], corpus.state(), str(working.folder / "progress.json"))
        corpus.restore(working.progress["corpus"])
    tokens, counted = working.progress["tokens"], working.progress["counted"]
    limit = settings.tokens if settings.tokens is not None else 2**62
    reader = _Reader(model, corpus, settings, wanted)
    window, keep = Window(settings.before, settings.after), working.keep
    with fast_attention(model.parts):
        while tokens < limit:
            segment = Segment(working.n_layers, tokens)
            while segment.n_entries < ENTRIES and (batch := reader.batch(limit - tokens - segment.n_tokens)):
                counted += reader.read(batch, segment)
                progress("reading", min(tokens + segment.n_tokens, limit), settings.tokens or tokens + segment.n_tokens)
            if segment.n_tokens == 0:
                break
            tokens += segment.n_tokens
            behind = {**working.progress, "tokens": tokens, "counted": counted, "corpus": corpus.state()}
            working.add(segment.summaries(window, keep), behind)
    if counted == 0:
        raise InputError(
            f"the corpus holds no token to look at features on: {tokens} tokens were read, of which the first of each sequence "
            "and special tokens do not count. Give longer text, or a shorter --context-length."
        )
    working.complete({})


class _Reader:
    """Runs the model over batches of sequences and encodes what the transcoders read."""

    def __init__(self, model: Traceable, corpus: Corpus, settings: BuildSettings, wanted: Wanted | None) -> None:
        transcoders = model.transcoders
        self.transcoders, self.corpus, self.settings, self.wanted = transcoders, corpus, settings, wanted
        # written where it is read: only the input is wanted, so the pass ends at the last layer's
        hook = transcoders.feature_input_hook
        self.passes = ModelPass(model.parts, Points(transcoders.layers, hook, hook), corpus.context_length)
        self.special = SpecialTokens.of(model.tokenizer)
        self.looked = False  # whether autoencoders fit the text

    def batch(self, tokens: int) -> list[np.ndarray]:
        """The next sequences, of ``settings.batch_tokens`` tokens or so together and at most ``tokens``."""
        found: list[np.ndarray] = []
        read = 0
        while read < min(self.settings.batch_tokens, tokens) and (sequence := self.corpus.next()) is not None:
            found.append(sequence[: tokens - read])
            read += len(found[-1])
        return found

    def read(self, sequences: list[np.ndarray], segment: Segment) -> int:
        """Add the sequences and what is active on them to a segment; returns how many of their tokens count."""
        longest = max(map(len, sequences))
        ids_BP = np.full(
            (len(sequences), longest), sequences[0][0], np.int64
        )  # what stands behind an end is never read
        inside_BP = np.zeros(ids_BP.shape, bool)
        for row, sequence in enumerate(sequences):
            ids_BP[row, : len(sequence)], inside_BP[row, : len(sequence)] = sequence, True
        counts = ~np.isin(ids_BP, self.special.dropped)
        counts[:, 0] = False
        token = np.flatnonzero(counts[inside_BP])
        rows = torch.from_numpy(np.flatnonzero((counts & inside_BP).ravel()))
        inputs, _ = self.passes.run(torch.from_numpy(ids_BP))
        read = dict(zip(self.transcoders.layers, inputs, strict=True))
        self._require_fit(read, rows)
        active = [self._active(layer, read.get(layer), rows, token) for layer in range(self.transcoders.n_layers)]
        segment.add(sequences, active)
        return len(token)

    def _require_fit(self, read: dict[int, torch.Tensor], rows: torch.Tensor) -> None:
        """Say it, once, where autoencoders rebuild what is read worse than nothing would."""
        if not self.looked and self.transcoders.is_autoencoder and len(rows):
            self.looked = True
            warn_of_misfit(self.transcoders, {layer: x[rows.to(x.device)] for layer, x in read.items()})

    def _active(
        self, layer: int, x_nD: torch.Tensor | None, rows: torch.Tensor, token: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if len(rows) == 0 or x_nD is None or (self.wanted is not None and layer not in self.wanted):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        place = self.transcoders.device
        found = self.transcoders.encode_positions(layer, x_nD[rows.to(x_nD.device)].to(place))
        position, index, value = (column.cpu().numpy() for column in found)
        if self.wanted is not None:
            kept = np.isin(index, self.wanted[layer])
            position, index, value = position[kept], index[kept], value[kept]
        return token[position], index, value


def _write(
    model: Traceable,
    settings: BuildSettings,
    wanted: Wanted | None,
    identity: dict[str, Any],
    working: BuildFolder,
    target: Path,
    progress: Progress,
) -> None:
    """Records of all layers, made in the working folder and moved when all are there; the manifest comes last."""
    made, index, texts = working.folder / "records", {}, TokenTexts(model.tokenizer)
    transcoders, vocabulary = model.transcoders, vocabulary_of(model)
    for layer in range(transcoders.n_layers):
        features = (
            np.arange(transcoders.n_features(layer)) if wanted is None else wanted.get(layer, np.zeros(0, np.int64))
        )
        chosen = torch.from_numpy(features)
        effects = logit_effects(model.parts, transcoders, layer, chosen, settings.logits, vocabulary)
        counted, name, summary = working.progress["counted"], identity["transcoders"], working.whole(layer)
        records = LayerRecords(name, layer, features, effects, summary, counted, settings.before, texts)
        index[layer] = write_layer(made, layer, transcoders.n_features(layer), _each(records))
        progress("writing", layer + 1, transcoders.n_layers)
    write_index(made, index)
    for file in [*sorted(made.glob("layer_*.bin")), made / INDEX]:
        os.replace(file, target / file.name)
    manifest = {
        "tokens": working.progress["tokens"],
        "tokens_counted": working.progress["counted"],
        "settings": identity,
    }
    write_sealed(target / MANIFEST, manifest, indent=1, ensure_ascii=False)


def _each(records: LayerRecords) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, index in enumerate(records.index.tolist()):
        yield index, records.record(row)
