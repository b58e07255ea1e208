"""The sweep: rows of gradients travel from their target down to the embedding, and meet every source on the way.

A row is the adjoint of the residual stream for one target (README.md §4.2). Rows never look right of their own position (a
block of rows holds positions up to its last target's) nor above their own layer (they join when the sweep arrives there).

Letters: L layers, P positions, D d_model, T rows in flight, C columns (active features).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.row_blocks import split_rows
from circuit_tracer.kernels.contract import contract_


@dataclass(frozen=True)
class EdgeBlock:
    """Edges of T targets to everything: features in column order (position, layer, feature), errors (L, P), tokens (P).

    `row` says which of the swept targets each row is; rows are sorted by layer, top first. Columns and positions end at the
    block's last position: all later ones are zero.
    """

    row: Tensor  # (T,)
    layer: Tensor  # (T,)
    n_pos: int  # P
    n_columns: int  # C
    edges: Tensor  # (T, C + (L + 1) * P)

    @property
    def feature(self) -> Tensor:
        """(T, C)"""
        return self.edges[:, : self.n_columns]

    @property
    def error(self) -> Tensor:
        """(T, L, P)"""
        error: Tensor = self.edges[:, self.n_columns : self.edges.shape[1] - self.n_pos].unflatten(1, (-1, self.n_pos))
        return error

    @property
    def token(self) -> Tensor:
        """(T, P)"""
        return self.edges[:, self.edges.shape[1] - self.n_pos :]


class Sweep:
    """The adjoint of one linear prompt."""

    def __init__(self, prompt: LinearPrompt) -> None:
        self.prompt, self.network, self.sources, self.decoder = prompt, prompt.network, prompt.sources, prompt.decoder
        self.dtype, self.device = prompt.error.dtype, prompt.error.device
        every = torch.arange(prompt.n_pos, device=self.device)
        self.error = torch.stack([self.network.write_at(layer, e, every) for layer, e in enumerate(prompt.error)])

    def blocks(self, targets: ReadOut, block_rows: int, wanted: Tensor | None = None) -> Iterator[EdgeBlock]:
        """Edges of the `wanted` (T,) targets (None: all), at most `block_rows` at a time; results do not depend on it beyond
        rounding.

        The targets are split as if all were wanted: what is left of them comes in the blocks in which it would have come.
        """
        for chosen in split_rows(targets.layer, targets.position, block_rows):
            if len(left := chosen if wanted is None else chosen[wanted[chosen]]):
                yield self._block(left, targets.take(left))

    def _block(self, row: Tensor, targets: ReadOut) -> EdgeBlock:
        n_pos, n_layers = int(targets.position.max()) + 1, self.network.n_layers
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        g = torch.zeros(len(targets), n_pos, targets.vector.shape[1], **options)
        n_columns = self.sources.position_ptr[n_pos]
        edges = torch.zeros(len(targets), n_columns + (n_layers + 1) * n_pos, **options)
        block = EdgeBlock(row, targets.layer, n_pos, n_columns, edges)
        feature, error = block.feature, block.error
        joined = [
            int((targets.layer >= layer).sum()) for layer in range(n_layers + 1)
        ]  # rows sorted by layer, top first
        self._join_logits(g[: joined[n_layers]], targets)
        self._join_stream(n_layers, True, g, targets)
        for layer in reversed(range(n_layers)):
            above, here = joined[layer + 1], joined[layer]
            if above:
                self._read_off(layer, g[:above], feature[:above], error[:above, layer])
            self._skip_back_(layer, g[:above])
            self._join(layer, g, targets, above, here)
            self._join_stream(layer, False, g, targets)
            if not self.network.parallel and here:
                self.network.layers[layer].attend_back_(g[:here])
            self._join_stream(layer, True, g, targets)
        block.token.copy_(torch.einsum("tpd,pd->tp", g, self.prompt.captured.embedding[:n_pos]))
        return block

    def _join_logits(self, g_TPD: Tensor, targets: ReadOut) -> None:
        n = g_TPD.shape[0]
        position = targets.position[:n].to(self.device)
        vectors = targets.vector[:n].to(device=self.device, dtype=self.dtype)
        g_TPD[torch.arange(n, device=self.device), position] = self.network.final_norm.adjoint_at(vectors, position)

    def _join(self, layer: int, g_TPD: Tensor, targets: ReadOut, above: int, here: int) -> None:
        if here == above:
            return
        position = targets.position[above:here].to(self.device)
        vectors = targets.vector[above:here].to(device=self.device, dtype=self.dtype)
        rows = torch.arange(above, here, device=self.device)
        g_TPD[rows, position] = self.network.read_adjoint(layer, vectors, position)

    def _join_stream(self, layer: int, entering: bool, g_TPD: Tensor, targets: ReadOut) -> None:
        if targets.stream is not None and len(here := targets.stream.at(layer, entering)):
            here = here.to(self.device, self.dtype)
            g_TPD.index_put_((here.row, here.position), here.vector, accumulate=True)

    def _read_off(self, layer: int, g_TPD: Tensor, feature_TC: Tensor, error_TP: Tensor) -> None:
        n_pos, sources = g_TPD.shape[1], self.sources.layers[layer]
        for first, last, rows in self.decoder.rows(layer, n_pos):
            ptr = [start - sources.ptr[first] for start in sources.ptr[first : last + 1]]
            contract_(feature_TC, g_TPD[:, first:last], rows, ptr, sources.column[first:last])
        error_TP += torch.einsum("tpd,pd->tp", g_TPD, self.error[layer, :n_pos])

    def _skip_back_(self, layer: int, g_TPD: Tensor) -> None:
        """Add what rows gain through the transcoder's skip connection, output hook -> input hook.

        Where attention and MLP run in parallel, attention takes the rows as they were, and its part is added here too.
        """
        skip, n_pos, attention = self.prompt.skips[layer], g_TPD.shape[1], self.network.layers[layer]
        if skip is None:
            if self.network.parallel and len(g_TPD):
                attention.attend_back_(g_TPD)
            return
        for rows in g_TPD.split(max(1, self.decoder.chunk_bytes // (g_TPD[:1].nbytes or 1))):
            position = torch.arange(n_pos, device=self.device).repeat(len(rows))
            at_output = self.network.write_adjoint(layer, rows.view(-1, rows.shape[2]), position)
            gained = self.network.read_adjoint(layer, at_output @ skip.T, position).view_as(rows)
            if self.network.parallel:
                attention.attend_back_(rows)
            rows += gained
