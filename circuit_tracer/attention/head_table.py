"""The diagnosis of all heads of a model, as a table.

Letters: L layers, H heads, N sequences, T tokens of a sequence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attention.head_picture import draw_heads
from circuit_tracer.attention.pattern_scores import SCORES
from circuit_tracer.errors import InputError
from circuit_tracer.files import atomic_write
from circuit_tracer.models.indices import Head, checked_head


@dataclass(frozen=True)
class HeadTable:
    """Scores of every head.

    Attributes:
        text: On what.
        scores: By their names in `SCORES`, (L, H) float64; NaN where a score is not defined, or a head was not ablated.
        sequences: Those that were read, (T,) ids.
        skipped: Those that were too short.
        repeated: Queries that have an earlier equal token.
        peaks: (N, L, H) the largest attention in a sequence, position 0 left out.
        losses: Of the whole model on repeated random tokens, "first copy" and "second copy", where heads were ablated.
        ablated: how.
    """

    model: str
    dtype: str
    text: str
    scores: dict[str, Tensor]
    sequences: Sequence[Tensor]
    skipped: int
    repeated: int
    peaks: Tensor
    losses: dict[str, float] | None = None
    ablated: str | None = None

    @property
    def n_layers(self) -> int:
        """L."""
        return int(self.peaks.shape[1])

    @property
    def n_heads(self) -> int:
        """H, of a layer."""
        return int(self.peaks.shape[2])

    @property
    def n_tokens(self) -> int:
        """Tokens that were read."""
        return sum(map(len, self.sequences))

    @typed
    def __getitem__(self, score: str) -> Tensor:
        """A score of all heads, (L, H) float64. Raises InputError for an unknown one."""
        if score not in self.scores:
            raise InputError(f"score {score!r} is unknown; known are {', '.join(self.scores)}")
        return self.scores[score]

    @typed
    def order(self, score: str = "induction", ascending: bool = False) -> list[Head]:
        """All heads, that of the highest score first (or the lowest); those without it last."""
        values = self[score].flatten()
        missing = math.inf if ascending else -math.inf
        places = torch.argsort(values.nan_to_num(nan=missing), descending=not ascending, stable=True)
        return [(place // self.n_heads, place % self.n_heads) for place in places.tolist()]

    @typed
    def strongest(self, score: str = "induction", count: int = 5) -> list[Head]:
        """The (layer, head) of the highest scores; fewer where fewer heads have it."""
        return [head for head in self.order(score) if not math.isnan(float(self[score][head]))][: max(0, count)]

    def row(self, head: Head) -> dict[str, Any]:
        """Plain values of a (layer, head): these, and its scores; None for what is not defined. Raises InputError."""
        layer, number = checked_head(head, self.n_layers, self.n_heads)
        values = {name: float(values[layer, number]) for name, values in self.scores.items()}
        return {
            "layer": layer,
            "head": number,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }

    @typed
    def rows(self, score: str | None = None, ascending: bool = False) -> list[dict[str, Any]]:
        """Of all heads, by layer and head or sorted by a score."""
        places = [(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]
        return [self.row(head) for head in (places if score is None else self.order(score, ascending))]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what was read, what the columns are, and the rows."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "text": self.text,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_sequences": len(self.sequences),
            "n_tokens": self.n_tokens,
            "n_skipped": self.skipped,
            "n_repeated": self.repeated,
            "losses": self.losses,
            "ablated": self.ablated,
            "scores": {name: SCORES[name].what for name in self.scores},
            "heads": self.rows(),
        }

    def to_json(self, path: str | Path) -> Path:
        """Write `to_dict` into a file."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
        return Path(path)

    def draw(self, path: str | Path) -> Path:
        """Write a picture, layers up and heads across, a panel a score: SVG, PNG or PDF. Raises CircuitTracerError without
        matplotlib.
        """
        titles = {name: (SCORES[name].what, SCORES[name].bounds) for name in self.scores}
        return draw_heads({name: (values, *titles[name]) for name, values in self.scores.items()}, self.model, path)

    def __repr__(self) -> str:
        best = self.strongest("induction", 1)
        shown = f"; induction: L{best[0][0]}H{best[0][1]} {float(self['induction'][best[0]]):.2f}" if best else ""
        return f"HeadTable({self.model}: {self.n_layers} x {self.n_heads} heads on {self.text}{shown})"
