"""The feature pages of the embedded default: its whole world is the corpus, each sentence read by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.demo import world
from circuit_tracer.features.build import BuildSettings, build_features
from circuit_tracer.features.labels import Label, read_labels, write_labels
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.text.corpus import Corpus, ListedDocuments, SeparateDocuments
from circuit_tracer.text.special import SpecialTokens

SENTENCE_TOKENS = 64  # the model's context
SHIPPED = BuildSettings(top=8, sample=10)  # small enough to ship
FROM_WORLD = "world"  # source of labels.py's labels


def corpus_of(tokenizer: Any) -> Corpus:
    """Every sentence of the world, each once."""
    texts = [statement.text for statement in (*world.skills(), *world.one_hops(), *world.two_hops())]
    return SeparateDocuments(ListedDocuments(texts), tokenizer, SpecialTokens.of(tokenizer), SENTENCE_TOKENS)


def build_demo_features(folder: str | Path) -> Path:
    """Write the features of the pair in ``folder`` (model/, transcoder/, labels.json) into its features/, labels included;
    what was there is replaced. Returns the folder of features.
    """
    root = Path(folder)
    target = root / "features"
    shutil.rmtree(target, ignore_errors=True)
    model = ReplacementModel.from_pretrained(root / "model", root / "transcoder", device="cpu", dtype=torch.float32)
    build_features(model, corpus_of(model.tokenizer), target, SHIPPED)
    write_labels(target, {place: Label(text, FROM_WORLD) for place, text in read_labels(root / "labels.json").items()})
    return target
