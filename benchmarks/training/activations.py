"""Makes the activations that both engines of quality.py learn from and are measured on (layout: rows.py).

demo: the embedded model. Rows are its distinct contexts (a token with all before it) of the statements that its own transcoder
learns from, drawn at random with replacement; calibration and test are contexts of other statements that do not occur there.
smollm2: SmolLM2-135M (inputs.prepare_models) on a corpus (recipes/smollm2/corpus.sh, or any JSONL with a field "text"), read as
the package's own training reads it: packed, position 0 and norm outliers left out, shuffled, documents held out.

Letters: B sequences, P positions, N rows, S layers, D width.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.rows import Writer, write_moments
from circuit_tracer.models.loading import load_language_model
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.run import fast_attention
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import held_out_activations, held_out_tokens, open_stream
from circuit_tracer.training.feature_ranks import FeatureRanks

INPUT_HOOK, OUTPUT_HOOK = "hook_resid_mid", "hook_mlp_out"
CHUNK = 256  # rows of text written at a time
HELD_OUT = 4096  # rows of calibration and as many of test, at most
PROMPTS = (
    "The capital of France is",
    "Fact: the capital of the state containing Dallas is",
    "The opposite of small is",
    "When Mary and John went to the store, John gave a drink to",
    "In the beginning God created the heaven and the",
    "The file is deleted if the option is",
)


@dataclass
class Subject:
    """A model and what dictionaries of it are measured on besides activations."""

    parts: ModelParts
    tokenizer: Any
    sequences: list[Tensor]  # held-out text, for the model with its MLPs replaced
    prompts: list[str]  # for graphs
    about: dict[str, Any] = field(default_factory=dict)


def load(name: str | Path) -> tuple[ModelParts, Any]:
    """A model in float32 on the CPU, and its tokenizer."""
    model, tokenizer = load_language_model(str(name), torch.device("cpu"), torch.float32)
    return bind(model, Path(name).name), tokenizer


def demo_subject() -> Subject:
    """The embedded model, its held-out statements and their prompts."""
    from circuit_tracer.demo import MODEL, world

    parts, tokenizer = load(MODEL)
    statements = [*world.held_out(), *world.reserved()]
    prompts = [one.prompt for one in world.held_out()[::6]]
    return Subject(parts, tokenizer, _encoded(tokenizer, statements), prompts)


def write_demo(folder: Path, subject: Subject, tokens: int, seed: int = 0) -> None:
    """Rows of the embedded world."""
    from circuit_tracer.demo import world

    known = _contexts(subject, _encoded(subject.tokenizer, world.transcoder_training()))
    new = {key: rows for key, rows in _contexts(subject, subject.sequences).items() if key not in known}
    generator = torch.Generator().manual_seed(seed)
    shuffled = [list(new.values())[index] for index in torch.randperm(len(new), generator=generator).tolist()]
    half = len(shuffled) // 2
    folder.mkdir(parents=True, exist_ok=True)
    for group, rows in (
        ("train", list(known.values())),
        ("calibration", shuffled[:half]),
        ("test", shuffled[half:]),
    ):
        x_NSD, y_NSD = (torch.stack([row[side] for row in rows]) for side in range(2))
        Writer(folder, group, tuple(x_NSD.shape), "float32").add(x_NSD, y_NSD)
    np.save(folder / "order.npy", torch.randint(len(known), (tokens,), generator=generator).numpy())
    write_moments(folder)
    _write_about(folder, subject, {"model": "circuit-tracing-demo", "tokens": tokens, "rows": len(known)})


def smollm2_subject(model: Path, corpus: Path) -> Subject:
    """SmolLM2, held-out documents of the corpus, and some prompts."""
    parts, tokenizer = load(model)
    subject = Subject(parts, tokenizer, [], list(PROMPTS))
    with tempfile.TemporaryDirectory() as scratch:
        subject.sequences = held_out_tokens(_config(model, corpus, CHUNK, Path(scratch)), tokenizer)
    return subject


def write_smollm2(folder: Path, subject: Subject, model: Path, corpus: Path, tokens: int) -> None:
    """Rows of text."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(model, corpus, tokens, folder)
    held_out = held_out_activations(config, subject.parts, subject.tokenizer, 2 * HELD_OUT)
    half = len(held_out.x_BSD) // 2
    for group, part in (("calibration", slice(0, half)), ("test", slice(half, 2 * half))):
        x_NSD, y_NSD = held_out.x_BSD[part], held_out.y_BSD[part]
        Writer(folder, group, tuple(x_NSD.shape), "float32").add(x_NSD, y_NSD)
    _, n_layers, width = held_out.x_BSD.shape
    del held_out
    stream = open_stream(config, subject.parts, subject.tokenizer, FeatureRanks())
    writer = Writer(folder, "train", (tokens // CHUNK * CHUNK, n_layers, width), "float16")
    for _ in range(tokens // CHUNK):
        rows = stream.next()
        if rows is None:
            raise SystemExit(f"the corpus gives {writer.filled} tokens, {tokens} are wanted")
        writer.add(rows.x_BSD, rows.y_BSD)
    np.save(folder / "order.npy", np.arange(writer.filled))
    write_moments(folder)
    digest = hashlib.sha256(corpus.read_bytes()).hexdigest()[:16]
    _write_about(
        folder, subject, {"model": model.name, "tokens": writer.filled, "rows": writer.filled, "corpus": digest}
    )


def _config(model: Path, corpus: Path, tokens: int, out: Path) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "model": {"name": str(model)},
            "data": {
                "kind": "jsonl",
                "path": str(corpus),
                "held_out": 0.1,
                "sequences_per_pass": 8,
                "buffer_tokens": 16384,
                "buffer_dtype": "bfloat16",
            },
            "dictionary": {"features": 256, "input_hook": INPUT_HOOK, "output_hook": OUTPUT_HOOK},
            "evaluation": {"tokens": HELD_OUT, "replacement_tokens": HELD_OUT},
            "optimizer": {"warmup_steps": 0},
            "run": {"out": out, "tokens": tokens, "batch": CHUNK},
        }
    )


def _write_about(folder: Path, subject: Subject, more: dict[str, Any]) -> None:
    """The last file to be written: with it the folder is complete."""
    sizes = {"layers": subject.parts.config.n_layers, "width": subject.parts.config.d_model}
    (folder / "about.json").write_text(json.dumps(sizes | more) + "\n")


def _encoded(tokenizer: Any, statements: Iterable[Any]) -> list[Tensor]:
    return [torch.tensor([*tokenizer(one.text).input_ids, tokenizer.eos_token_id]) for one in statements]


@torch.no_grad()
def _contexts(subject: Subject, sequences: Sequence[Tensor]) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
    """(x, y), each (S, D), of every distinct context but position 0 and the end of a sequence."""
    parts = subject.parts
    points = Points(tuple(range(parts.config.n_layers)), INPUT_HOOK, OUTPUT_HOOK)
    found: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    with fast_attention(parts):
        for ids_P in sequences:
            keys = [tuple(ids_P[: position + 1].tolist()) for position in range(len(ids_P) - 1)]
            if all(key in found for key in keys[1:]):
                continue
            sides = ModelPass(parts, points, len(ids_P)).run(ids_P[None])
            x_PSD, y_PSD = (torch.stack(side, 1) for side in sides)
            for position, key in enumerate(keys[1:], 1):
                found.setdefault(key, (x_PSD[position], y_PSD[position]))
    return found
