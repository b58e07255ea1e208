"""Small models, a tokenizer of letters and texts on disk, for the tests of training data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import ActivationBatch, BatchStream, open_stream
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support.tiny import tiny_model

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.;:!?'-\n01234567"
PAD, BOS, EOS = 0, 1, 2


@cache
def tokenizer(letters: str = LETTERS, bos: bool = True) -> Any:
    """One token a letter: pad, bos, eos, then letters (47 ids, as many as the tiny models know)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {letter: i for i, letter in enumerate(letters, 3)}
    plain = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=plain, **names)


@cache
def parts(name: str = "llama", dtype: torch.dtype = torch.float32) -> ModelParts:
    """A tiny model of an architecture; its weights must not be changed."""
    return bind(tiny_model(name, dtype), name)


def texts(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of 0 to `longest` letters."""
    draw = random.Random(seed)
    return ["".join(draw.choice(LETTERS) for _ in range(draw.randint(0, longest))) for _ in range(n)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    """One line a document."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def config(folder: Path, **changes: Any) -> TrainingConfig:
    """A small run on `folder`/data.jsonl; changes are named section__key."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"name": "tiny"},
        "data": {
            "kind": "jsonl",
            "path": str(folder / "data.jsonl"),
            "context_length": 16,
            "held_out": 0.1,
            "sequences_per_pass": 4,
            "buffer_tokens": 48,
            "max_norm_ratio": 1000.0,
        },
        "dictionary": {"features": 8},
        "sparsity": {"active": 2.0, "aux_active": 4},
        "optimizer": {"warmup_steps": 0},
        "evaluation": {},
        "run": {"out": folder / "out", "tokens": 1000, "batch": 16, "seed": 3},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree[section][name] = value
    return TrainingConfig(**tree)


def stream(settings: TrainingConfig, name: str = "llama", ranks: FeatureRanks | None = None) -> BatchStream:
    """The stream of a configuration on a tiny model."""
    return open_stream(settings, parts(name), tokenizer(), ranks or FeatureRanks())


def batches(source: BatchStream) -> Iterator[ActivationBatch]:
    """All batches to the end."""
    while (batch := source.next()) is not None:
        yield batch


def tensors(batch: ActivationBatch) -> list[torch.Tensor]:
    """What a batch holds."""
    held = (batch.x_BSD, batch.y_BSD, batch.direction_BSD, batch.derivative_BSD)
    return [tensor for tensor in held if tensor is not None]


def same(left: ActivationBatch, right: ActivationBatch) -> bool:
    """Whether two batches are bitwise equal."""
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return all(torch.equal(one, other) for one, other in pairs)
