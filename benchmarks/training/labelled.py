"""Activations of SmolLM2's residual stream with what is known of each token, made once (kinds.py).

The first `OF_DOCUMENT` pieces of `PIECE` tokens of documents of recipes/smollm2/corpus.sh; position 0 and norm outliers are
left out. Rows of "train" and "calibration" are of its corpus, of "probe" and "test" of its held-out documents; each document is
in one group.

Letters: N rows, P positions, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.training.activations import load
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.run import fast_attention

LAYER, HOOK = 12, "hook_resid_post"
PIECE, OF_DOCUMENT, TOGETHER = (
    128,
    2,
    8,
)  # tokens of a piece, pieces of a document, and of those that the model reads at a time
OUTLIER = 10.0  # times the median norm
HELD_OUT = ("calibration", "probe", "test")
# by the file that documents are of, in turns
GROUPS = {"held_out": ("probe", "test"), "corpus": ("train", "train", "train", "train", "calibration")}
PROGRAMS = ("python3.11-doc", "perl-doc", "rust-doc")

# What is asked of a token: of its document's source, of its own letters, or of what stands before it.
TASKS: dict[str, Callable[[str, list[str], int], bool]] = {
    "bible": lambda source, words, place: source == "bible-kjv-text",
    "programming": lambda source, words, place: source in PROGRAMS,
    "dictionary": lambda source, words, place: source.startswith("dict-"),
    "inside a word": lambda source, words, place: words[place].isalpha() and words[place - 1][-1:].isalpha(),
    "number": lambda source, words, place: any(letter.isdigit() for letter in words[place]),
    "capital": lambda source, words, place: words[place].strip()[:1].isupper(),
    "in brackets": lambda source, words, place: _depth(words[: place + 1]) > 0,
}


@dataclass(frozen=True)
class Rows:
    """Of one group: activations (N, D) float32, and the answer to every task (N,) bool."""

    x_ND: Tensor
    labels: dict[str, Tensor]


def _depth(words: list[str]) -> int:
    """Round brackets that are open."""
    depth = 0
    for letter in "".join(words):
        depth = max(0, depth + (letter == "(") - (letter == ")"))
    return depth


def rows_of(work: Path, model: Path, corpus: Path, tokens: int) -> dict[str, Rows]:
    """All groups, made unless they are in ``work``; ``tokens``: of "train", a quarter as many of each other group.

    ``corpus``: the folder that corpus.sh wrote.
    """
    file = work / f"labelled-{tokens}.safetensors"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        found = _made(model, corpus, tokens)
        save_file({f"{group}/{name}": tensor for group, one in found.items() for name, tensor in one.items()}, file)
    stored = load_file(file)
    return {
        group: Rows(stored[f"{group}/x"].float(), {task: stored[f"{group}/{task}"] for task in TASKS})
        for group in ("train", *HELD_OUT)
    }


@torch.no_grad()
def _made(model: Path, corpus: Path, tokens: int) -> dict[str, dict[str, Tensor]]:
    parts, tokenizer = load(model)
    reader = ModelPass(parts, Points((LAYER,), HOOK, HOOK), PIECE)
    wanted = {"train": tokens, **dict.fromkeys(HELD_OUT, tokens // 4)}
    found: dict[str, list[dict[str, Tensor]]] = {group: [] for group in wanted}
    have = dict.fromkeys(wanted, 0)
    with fast_attention(parts):
        for group, pieces in _pieces(corpus, tokenizer):
            if have[group] < wanted[group]:
                found[group].append(_read(reader, pieces))
                have[group] += len(found[group][-1]["x"])
            if all(have[group] >= count for group, count in wanted.items()):
                break
    joined = {
        group: {name: torch.cat([one[name] for one in read])[: wanted[group]] for name in read[0]}
        for group, read in found.items()
    }
    if short := [group for group in wanted if len(joined[group]["x"]) < wanted[group]]:
        raise SystemExit(
            f"{corpus} has too little text for {', '.join(short)}: build a larger one, or ask for fewer --tokens"
        )
    return joined


Piece = tuple[str, list[int], list[str]]  # source, ids and their text


def _pieces(corpus: Path, tokenizer: Any) -> Iterator[tuple[str, list[Piece]]]:
    """(group, pieces of its documents), so many at a time as the model reads."""
    waiting: dict[str, list[Piece]] = {group: [] for group in ("train", *HELD_OUT)}
    for name in ("held_out", "corpus"):
        for number, line in enumerate((corpus / f"{name}.jsonl").open(encoding="utf-8")):
            document = json.loads(line)
            group = GROUPS[name][number % len(GROUPS[name])]
            ids = tokenizer(document["text"]).input_ids
            words = [tokenizer.decode([token]) for token in ids]
            for start in range(0, len(ids) - PIECE + 1, PIECE)[:OF_DOCUMENT]:
                piece = slice(start, start + PIECE)
                waiting[group].append((document["source"], ids[piece], words[piece]))
            while len(waiting[group]) >= TOGETHER:
                yield group, waiting[group][:TOGETHER]
                del waiting[group][:TOGETHER]


def _read(reader: ModelPass, pieces: list[Piece]) -> dict[str, Tensor]:
    """float16 activations and labels of some pieces."""
    x_PD = reader.run(torch.tensor([ids for _, ids, _ in pieces]))[0][0]
    labels = {
        task: torch.tensor([asked(source, words, place) for source, _, words in pieces for place in range(PIECE)])
        for task, asked in TASKS.items()
    }
    norm_P = x_PD.norm(dim=1)
    kept_P = (torch.arange(len(x_PD)) % PIECE > 0) & (norm_P < OUTLIER * norm_P.median())
    return {"x": x_PD[kept_P].half()} | {task: label[kept_P] for task, label in labels.items()}
