"""The stream of rows (tokens' activations) in the order of the text, made by the model or read from a cache.

Letters: b sequences of a pass, P positions, n = b * P tokens, S source layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.models.model_pass import ModelPass
from circuit_tracer.ranks import Ranks
from circuit_tracer.text.packing import Packer
from circuit_tracer.training.data.ahead import Ahead
from circuit_tracer.training.data.block import Block
from circuit_tracer.training.data.filters import kept_tokens
from circuit_tracer.training.data.jacobian import MLPDerivative
from circuit_tracer.training.data.norms import require_finite, token_norms
from circuit_tracer.training.data.passes import Pass, Passes

DIRECTIONS = 1  # keeps the random numbers of directions apart from those of the shuffle (stream.py)


class Rows(Protocol):
    """The rows of one epoch, from any place in it."""

    def read(self, block: Block, start: int) -> int:
        """Fill the block from row `start` on; returns the end of what was filled, short of the block's at the epoch's end."""

    def rewind(self) -> None:
        """Back to the first row."""

    def state(self) -> dict[str, Any]:
        """The place behind the last row read, JSON-able."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a place; the rows that follow are bitwise the same."""

    def summary(self) -> str:
        """What was read so far, for messages."""

    def close(self, patience: float | None = None) -> None:
        """End the threads that read ahead, waiting for them so many seconds at most. `restore` and `rewind` begin again."""


@dataclass(frozen=True)
class Recipe:
    """How rows are made of a pass."""

    sequences_per_pass: int
    max_norm_ratio: float
    buffer_dtype: torch.dtype
    direction_seed: int | None  # None: no Jacobian products
    ahead: bool = True  # a thread reads ahead


class ModelRows:
    """Rows made by running the model. Each rank runs it on its share of a pass; all ranks get all rows, in the same order."""

    def __init__(self, packer: Packer, model_pass: ModelPass, recipe: Recipe, ranks: Ranks) -> None:
        self.packer, self.model_pass, self.recipe, self.ranks = packer, model_pass, recipe, ranks
        self._passes = Passes(packer, model_pass, recipe.sequences_per_pass, ranks)
        self._ahead: Ahead[Pass] | None = None  # begun when the first row is asked for
        self._made: _Made | None = None  # rows of the pass in hand that no block has taken
        self.rewind()

    def rewind(self) -> None:
        """Back to the first row."""
        self.close()
        self.packer.rewind()
        self._begin(0, 0, self.packer.state())

    def read(self, block: Block, start: int) -> int:
        """Run passes until the block is full or the epoch at its end. See `Rows.read`."""
        while start < block.n_rows:
            if self._made is None and not self._run():
                break
            assert self._made is not None
            taken = self._made.index[: block.n_rows - start]
            block.write(start, self._made.values, taken)
            start += len(taken)
            self._used += len(taken)
            self._made = self._made.after(len(taken), self.recipe.buffer_dtype)
            if self._made is None:
                self._begin(self._pass + 1, 0, self._behind)
        return start

    def state(self) -> dict[str, Any]:
        """The packer's place in front of the pass that made the next row, and how many rows of that pass are used."""
        return {"packer": self._before, "pass": self._pass, "used": self._used}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to the start of a pass; its used rows are made again and skipped."""
        self.close()
        self.packer.restore(state["packer"])
        self._begin(state["pass"], state["used"], self.packer.state())

    def summary(self) -> str:
        """Documents read."""
        return f"{self.packer.summary()}; sequences have {self.packer.context_length} tokens"

    def close(self, patience: float | None = None) -> None:
        """See `Rows.close`."""
        if self._ahead is not None:
            self._ahead.close(patience)
            self._ahead = None

    def _begin(self, number: int, used: int, place: dict[str, Any]) -> None:
        """Stand in front of pass `number` of the epoch, with the packer at `place` then."""
        self._pass, self._used, self._before = number, used, place
        self._made = None

    def _run(self) -> bool:
        """Make the rows of the next pass that has any; False at the end of the epoch."""
        if self._ahead is None:
            self._ahead = self._passes.ahead(self.recipe.ahead)
        while (found := self._ahead.next()) is not None:
            self._behind = found.behind
            self._made = self._make(found if found.x is not None else self._passes.run(found)).after(self._used, None)
            if self._made is not None:
                return True
            self._begin(self._pass + 1, 0, self._behind)
        return False

    def _make(self, found: Pass) -> _Made:
        """The rows of all ranks, checked and filtered; all ranks call this together."""
        x, y, ids_bP = found.x, found.y, found.ids_bP
        assert x is not None
        assert y is not None
        points = self.model_pass.points
        norm_nS = self._gather(token_norms(x), ids_bP.shape)
        require_finite(norm_nS, points.layers, points.input)
        values = {"x": x}
        if not points.same:
            require_finite(self._gather(token_norms(y), ids_bP.shape), points.layers, points.output)
            values["y"] = y
        index = kept_tokens(ids_bP, norm_nS, self.packer.special, self.recipe.max_norm_ratio)
        if self.recipe.direction_seed is not None:
            values |= self._derivatives(x, self._partners(self._passes.share(len(ids_bP)), ids_bP.shape[1], index))
        return _Made({name: self._gather_layers(layers, ids_bP.shape) for name, layers in values.items()}, index)

    def _derivatives(self, x: list[Tensor], partner_n: Tensor) -> dict[str, list[Tensor]]:
        """Differences to other tokens, and the MLPs' derivatives in these directions, for this rank's sequences."""
        points, derivative = self.model_pass.points, MLPDerivative(self.model_pass.parts, self.model_pass.points)
        # what is trained on is exactly what was differentiated along: a number of both the model's dtype and the buffer's
        direction = [(one[partner_n] - one).to(self.recipe.buffer_dtype).to(one.dtype) for one in x]
        products = [derivative(*each) for each in zip(points.layers, x, direction, strict=True)]
        require_finite(token_norms(products), points.layers, f"the derivative of {points.output}")
        return {"direction": direction, "derivative": products}

    def _partners(self, share: list[int], n_positions: int, index: Tensor) -> Tensor:
        """For each of this rank's tokens (n,) another one of its sequence: the same for any number of ranks and in every epoch.

        index: tokens of the pass that are trained on. The others are nobody's partner but their own.
        """
        partner_n = torch.arange(len(share) * n_positions, device=index.device)
        for slot, sequence in enumerate(share):
            here = torch.div(index, n_positions, rounding_mode="floor") == sequence
            kept = index[here] % n_positions + slot * n_positions
            if len(kept) > 1:
                draw = generator(
                    [self.recipe.direction_seed or 0, DIRECTIONS, self._pass, sequence], torch.device("cpu")
                )
                partner_n[kept] = kept.roll(int(torch.randint(1, len(kept), (), generator=draw)))
        return partner_n

    def _gather_layers(self, layers: list[Tensor], shape: torch.Size) -> list[Tensor]:
        if self.ranks.world == 1:
            return layers
        stacked = torch.stack([one.to(self.recipe.buffer_dtype) for one in layers], dim=1)
        return list(self._gather(stacked, shape).unbind(1))

    def _gather(self, share_n: Tensor, shape: torch.Size) -> Tensor:
        """Rows of all ranks' shares, those of a sequence side by side, sequences in the order of the pass."""
        if self.ranks.world == 1:
            return share_n
        n_sequences, n_positions = shape
        gathered: Tensor = self.ranks.all_gather(share_n).unflatten(0, (self.ranks.world, -1, n_positions))
        return gathered.transpose(0, 1).flatten(0, 1)[:n_sequences].flatten(0, 1)


@dataclass(frozen=True)
class _Made:
    """Rows of a pass that no block has taken: rows `index` (m,) of S activations (n, D) by name."""

    values: dict[str, list[Tensor]]
    index: Tensor

    def after(self, taken: int, dtype: torch.dtype | None) -> _Made | None:
        """What is left behind `taken` rows; None if nothing is. With a dtype, it is copied so that the pass can be freed."""
        left = self.index[taken:]
        if not len(left):
            return None
        if dtype is None:
            return _Made(self.values, left)
        values = {name: [one.index_select(0, left).to(dtype) for one in layers] for name, layers in self.values.items()}
        return _Made(values, torch.arange(len(left), device=left.device))


def generator(key: list[int], device: torch.device) -> torch.Generator:
    """A generator that a list of numbers determines."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed & (2**63 - 1))
