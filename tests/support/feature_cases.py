"""A tiny model with random transcoders and a corpus of token ids, and what features do on it, computed the slow way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuit_tracer.features import BuildSettings, build_features
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.text.corpus import Corpus, SeparateDocuments
from circuit_tracer.text.packing import Packer
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.text.token_files import TokenFiles
from tests.support.tiny import tiny_model, tiny_transcoder

N_FEATURES, LENGTH = 20, 16
SETTINGS = BuildSettings(tokens=None, top=4, sample=10, before=3, after=2, logits=5, batch_tokens=40)


@dataclass(frozen=True)
class Case:
    """One build, small enough to be sent to another process."""

    kind: str = "clt"
    activation: str = "jump_relu"
    packed: bool = True
    seed: int = 0
    documents: int = 24

    def model(self) -> ReplacementModel:
        model = tiny_model("llama", num_hidden_layers=2)
        sizes: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_features": N_FEATURES}
        transcoders = tiny_transcoder(self.kind, activation=self.activation, dtype=torch.float64, **sizes)
        return ReplacementModel.from_model(model, transcoders, None, "tiny")

    def corpus(self, folder: Path) -> Corpus:
        """Documents of few different tokens, so that contexts recur; the first tokens of each are those of others."""
        path = folder / "corpus.npy"
        if not path.is_file():
            draw = np.random.default_rng(self.seed)
            ids = draw.integers(3, 9, (self.documents, 11))
            ids[:, :3] = ids[0, :3]
            np.save(path, ids)
        source = TokenFiles(str(path), None)
        special = SpecialTokens.of(None)
        if self.packed:
            return Packer(source, None, special, LENGTH, held_out=1.0, evaluation=True)
        return SeparateDocuments(source, None, special, LENGTH)

    def build(self, folder: Path, name: str, settings: BuildSettings = SETTINGS, **options: Any) -> Path:
        return build_features(self.model(), self.corpus(folder), folder / name, settings, **options)


@dataclass(frozen=True)
class Active:
    """A feature on a token: activation, ids around it, activations around it, and where the token stands among them."""

    value: float
    tokens: tuple[int, ...]
    acts: tuple[float, ...]
    centre: int
    sequence: int

    @property
    def left(self) -> tuple[int, ...]:
        return self.tokens[: self.centre + 1]


def slowly(case: Case, folder: Path, settings: BuildSettings = SETTINGS) -> tuple[dict[Any, list[Active]], int]:
    """Everything that is active, by (layer, feature), and the number of tokens that count."""
    model, corpus = case.model(), case.corpus(folder)
    hook = model.transcoders.feature_input_hook
    reader = ModelPass(model.parts, Points((0, 1), hook, hook), LENGTH)
    found, counted = defaultdict(list), 0
    for number, ids in enumerate(sequences(corpus)):
        inputs, _ = reader.run(torch.from_numpy(ids)[None])
        counted += len(ids) - 1
        for layer, x_PD in enumerate(inputs):
            a_PF = model.transcoders.encode_layer(x_PD, layer).numpy()
            a_PF[0] = 0
            for position, feature in zip(*np.nonzero(a_PF), strict=True):
                span = slice(max(0, position - settings.before), position + settings.after + 1)
                one = Active(
                    float(a_PF[position, feature]),
                    tuple(ids[span].tolist()),
                    tuple(a_PF[span, feature].tolist()),
                    int(position) - span.start,
                    number,
                )
                found[layer, int(feature)].append(one)
    return found, counted


def sequences(corpus: Corpus) -> Iterator[np.ndarray]:
    """What is left of a corpus."""
    while (ids := corpus.next()) is not None:
        yield ids


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
