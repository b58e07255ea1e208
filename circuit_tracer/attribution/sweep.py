"""The sweep: rows of gradients travel from their target down to the embedding, and meet every source on the way.

A row is the adjoint of the residual stream for one target (README.md §4.2). Rows never look right of their own position (a
block of rows holds positions up to its last target's) nor above their own layer (they join when the sweep arrives there).

Rows of several prompts can be in flight together. Those of a prompt lie side by side and meet its sources only; what is linear
in the rows and knows no source (the projections of attention, which are nearly all of the work) is done once for all of them.

Letters: L layers, P positions, D d_model, T rows in flight, C columns (active features), B prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from circuit_tracer.attribution.attention_nodes import LinearAttention
from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.row_blocks import BYTES_WAITING, split_rows
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.kernels.attend_back import rows_a_chunk
from circuit_tracer.kernels.contract import contract_, contract_each
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.workers import go_on, others_are_idle, share

# Bytes of all layers' sources from which on idle workers are let read off some; positions that one reads off at a time.
WORTH_SHARING, POSITIONS_A_PART = 16 * 2**20, 2

REACH_BYTES = 2**24  # that a table of how tokens reach positions may take


@dataclass(frozen=True)
class EdgeBlock:
    """Edges of T targets to everything: features in column order (position, layer, feature), errors (E, P), tokens (P).

    Errors are those of the layers; where attention is replaced too, those of attention follow: E = 2 L.
    `row` says which of the swept targets each row is; rows are sorted by step (`SourceTable`), top first. Columns and positions
    end at the block's last position: all later ones are zero.
    """

    row: Tensor  # (T,)
    step: Tensor  # (T,)
    n_pos: int  # P
    n_columns: int  # C
    edges: Tensor  # (T, C + (E + 1) * P)

    @property
    def feature(self) -> Tensor:
        """(T, C)"""
        return self.edges[:, : self.n_columns]

    @property
    def error(self) -> Tensor:
        """(T, E, P)"""
        error: Tensor = self.edges[:, self.n_columns : self.edges.shape[1] - self.n_pos].unflatten(1, (-1, self.n_pos))
        return error

    @property
    def token(self) -> Tensor:
        """(T, P)"""
        return self.edges[:, self.edges.shape[1] - self.n_pos :]


class Sweep:
    """The adjoint of one linear prompt, or of several that were made linear side by side.

    network: that of all of them; one prompt's is its own.
    """

    def __init__(self, *prompts: LinearPrompt, network: FrozenNetwork | None = None) -> None:
        self.prompts, self.network = prompts, prompts[0].network if network is None else network
        self.dtype, self.device = prompts[0].error.dtype, prompts[0].error.device
        self.start = [0, *torch.tensor([prompt.n_pos for prompt in prompts]).cumsum(0).tolist()]
        self.error = [_in_residual(prompt) for prompt in prompts]  # B x (L, P, D)
        self.reach = _reach(prompts[0]) if len(prompts) == 1 else None

    def split(self, targets: ReadOut, block_rows: int, numbers: int = 0, wanted: Tensor | None = None) -> list[Tensor]:
        """Which of the `wanted` (T,) targets (None: all) are swept together (row_blocks.py): results do not depend on it beyond
        rounding.

        The targets are split as if all were wanted: what is left of them comes in the blocks in which it would have come.
        """
        step = self.prompts[0].sources.step(targets.layer, targets.of_attention)
        blocks = split_rows(step, targets.position, block_rows, targets.vector.shape[1], numbers)
        left = [chosen if wanted is None else chosen[wanted[chosen]] for chosen in blocks]
        return [rows for rows in left if len(rows)]

    def block(self, targets: ReadOut, rows: Tensor) -> EdgeBlock:
        """Edges of some of the targets, of one prompt."""
        return self._block([(0, rows, targets.take(rows))])[0]

    def blocks(self, targets: ReadOut, block_rows: int) -> Iterator[EdgeBlock]:
        """Edges of all targets, at most `block_rows` at a time."""
        for rows in self.split(targets, block_rows):
            yield self.block(targets, rows)

    def split_several(
        self, asked: Sequence[tuple[int, ReadOut]], block_rows: int, numbers: int = 0
    ) -> list[list[tuple[int, Tensor]]]:
        """The same for targets of several prompts, each with the prompt's number: of every block, which of `asked` it has
        targets of, and which.
        """
        layer, position = (torch.cat([getattr(each, name) for _, each in asked]) for name in ("layer", "position"))
        counts = torch.tensor([len(each) for _, each in asked])
        first, of_row = counts.cumsum(0) - counts, torch.arange(len(asked)).repeat_interleave(counts)
        blocks = []
        for chosen in split_rows(layer, position, block_rows, asked[0][1].vector.shape[1], numbers):
            order = torch.argsort(of_row[chosen], stable=True)  # a prompt's rows together, sorted by layer as they were
            members, sizes = of_row[chosen].unique(return_counts=True)
            each = zip(members.tolist(), chosen[order].split(sizes.tolist()), strict=True)
            blocks.append([(member, rows - first[member]) for member, rows in each])
        return blocks

    def block_of_several(
        self, asked: Sequence[tuple[int, ReadOut]], block: Sequence[tuple[int, Tensor]]
    ) -> list[tuple[int, EdgeBlock]]:
        """Edges of such a block: which of `asked` they belong to, and the edges."""
        members = [(asked[member][0], rows, asked[member][1].take(rows)) for member, rows in block]
        return list(zip([member for member, _ in block], self._block(members), strict=True))

    def _block(self, members: Sequence[tuple[int, Tensor, ReadOut]]) -> list[EdgeBlock]:
        """The blocks of some targets of each of some prompts: (prompt, which targets, what they read)."""
        flight = _Flight(self, members)
        network, replaced, reach = flight.network, flight.replaced, None
        flight.join(network.n_layers)
        flight.join_stream(network.n_layers, True)
        for layer in reversed(range(network.n_layers)):
            go_on()
            flight.multiply_(layer)
            flight.read_off(layer)
            if network.parallel and layer in replaced:
                flight.read_off_attention(layer)
            flight.skip_back_(layer)
            if flight.at_one_position and not network.parallel and layer not in replaced:
                if layer == 0 and (reach := self.reach) is not None:
                    flight.join(layer)
                    break
                flight.attend_back_and_join(layer)
                continue
            here = flight.join(layer)
            flight.join_stream(layer, False)
            if not network.parallel and layer in replaced:
                flight.read_off_attention(layer)
            elif not network.parallel and len(here):
                network.layers[layer].attend_back_(here, flight.prompt_T(flight.step(layer)))
            flight.join_attention(layer)
            flight.join_stream(layer, True)
        flight.read_waiting()
        flight.read_shared()
        if reach is None:
            flight.read_tokens()
        else:
            flight.read_tokens_through(reach)
        return flight.blocks


def _reach(prompt: LinearPrompt) -> Tensor | None:
    """How each token reaches every position of the stream that the first layer's MLP reads, (P, P, D): with it rows find the
    tokens without a way through that layer's attention, by D numbers a token and position instead of its weights. None where
    it would be large, or where something else stands for this attention or beside it.
    """
    embedding_PD, network = prompt.captured.embedding, prompt.network
    replaced = prompt.attention is not None and 0 in prompt.attention.layers
    if network.parallel or replaced or len(embedding_PD) * embedding_PD.nbytes > REACH_BYTES:
        return None
    alone_PPD = embedding_PD.new_zeros(len(embedding_PD), *embedding_PD.shape)
    every = torch.arange(len(embedding_PD), device=embedding_PD.device)
    alone_PPD[every, every] = embedding_PD
    return alone_PPD + torch.stack([network.layers[0].attend(each_PD, constants=False) for each_PD in alone_PPD])


def _in_residual(prompt: LinearPrompt) -> Tensor:
    """What the errors of a prompt write into the residual stream, (L, P, D)."""
    every = torch.arange(prompt.n_pos, device=prompt.error.device)
    return torch.stack([prompt.network.write_at(layer, e, every) for layer, e in enumerate(prompt.error)])


class _Flight:
    """Rows on their way from the top layer down, those of a prompt together, its highest layers first.

    Rows of one prompt are there from the beginning, and those that have joined are the first; they go through the prompt's own
    network. Of several prompts only the rows that have joined are there.
    """

    def __init__(self, sweep: Sweep, members: Sequence[tuple[int, Tensor, ReadOut]]) -> None:
        numbers, rows, self.targets = zip(*members, strict=True)
        self.numbers = torch.tensor(numbers)
        self.prompts = [sweep.prompts[number] for number in numbers]
        self.errors = [sweep.error[number] for number in numbers]
        self.alone = len(members) == 1
        self.network = self.prompts[0].network if self.alone else sweep.network
        self.start = [0 if self.alone else sweep.start[number] for number in numbers]  # of each in the network
        self.options: dict[str, Any] = {"dtype": sweep.dtype, "device": sweep.device}
        attention = self.prompts[0].attention
        self.replaced: tuple[int, ...] = () if attention is None else attention.layers
        self.blocks = [
            _empty_block(row, each, prompt.sources, self.options)
            for row, each, prompt in zip(rows, self.targets, self.prompts, strict=True)
        ]
        self.n_pos = max(block.n_pos for block in self.blocks)
        self.position = [sent(each.position, sweep.device) for each in self.targets]
        n_steps = self.prompts[0].sources.n_steps
        counts = [torch.bincount(block.step, minlength=n_steps + 1).flip(0).cumsum(0).flip(0) for block in self.blocks]
        # (steps + 2) x B rows of each prompt at a step or above
        self.joined: list[list[int]] = [*torch.stack(counts, dim=1).tolist(), [0] * len(members)]
        self.waiting: list[tuple[int, Tensor]] = []  # layers, and rows that have not read off what is written there
        self.read_shared: Callable[[], None] = lambda: None  # ends what was shared last
        decoder = self.prompts[0].decoder
        self.sharing = False
        layers = range(len(decoder.written))
        sources = sum(decoder.bytes_at(layer, self.n_pos) for layer in layers) if self.alone and decoder.at_hand else 0
        self.may_share = sources > WORTH_SHARING
        width = self.targets[0].vector.shape[1]
        self.g = torch.zeros(len(rows[0]) if self.alone else 0, self.n_pos, width, **self.options)

    def step(self, layer: int, of_attention: bool = False) -> int:
        """That of rows which begin at the MLP of a layer (L: behind the final norm), or at its attention."""
        return int(self.prompts[0].sources.step(torch.tensor(layer), torch.tensor(of_attention)))

    def at(self, step: int) -> Tensor:
        """The rows (T, P, D) of targets at a step or above."""
        return self.g[: sum(self.joined[step])]

    def join(self, layer: int) -> Tensor:
        """Targets at a layer (L: behind the final norm) begin here; returns the rows that there are then."""
        step = self.step(layer)
        above, here = self.joined[step + 1], self.joined[step]
        if above == here:
            return self.at(step)
        new = [slice(first, last) for first, last in zip(above, here, strict=True)]
        position = _joined([each[some] for each, some in zip(self.position, new, strict=True)])
        vector = _joined([each.vector[some] for each, some in zip(self.targets, new, strict=True)]).to(**self.options)
        if self.alone:
            rows = torch.arange(above[0], here[0], device=vector.device)
            self.g[rows, position] = self._adjoint(layer, vector, position)
            return self.at(step)
        start = torch.tensor(self.start).repeat_interleave(torch.tensor(here) - torch.tensor(above))
        place = position + sent(start, position.device)
        fresh = vector.new_zeros(len(position), *self.g.shape[1:])
        fresh[torch.arange(len(position), device=vector.device), position] = self._adjoint(layer, vector, place)
        added = fresh.split_with_sizes([last - first for first, last in zip(above, here, strict=True)])
        there = self.g.split_with_sizes(above)
        self.g = torch.cat([part for pair in zip(there, added, strict=True) for part in pair])
        return self.g

    def _adjoint(self, layer: int, vector_nD: Tensor, place_n: Tensor) -> Tensor:
        if layer == self.network.n_layers:
            return self.network.final_norm.adjoint_at(vector_nD, place_n)
        return self.network.read_adjoint(layer, vector_nD, place_n)

    @property
    def at_one_position(self) -> bool:
        """Whether these are rows of one prompt that begin at the MLPs (or behind the final norm), at one position each."""
        return self.alone and self.targets[0].stream is None and self.targets[0].attention is None

    def attend_back_and_join(self, layer: int) -> None:
        """Rows above a layer's MLP go through the attention before it, and those that begin there do so from their position."""
        above, here = (self.joined[step][0] for step in (self.step(layer) + 1, self.step(layer)))
        attention, targets = self.network.layers[layer], self.targets[0]
        if above:
            attention.attend_back_(self.g[:above])
        step = rows_a_chunk(self.n_pos * self.g.shape[2] * self.g.element_size())
        for first in range(above, here, step):
            some = slice(first, min(here, first + step))
            position = self.position[0][some]
            adjoint = self._adjoint(layer, targets.vector[some].to(**self.options), position)
            self.g[some] = attention.attend_back_at(adjoint, position, self.n_pos)

    def join_stream(self, layer: int, entering: bool) -> None:
        """Targets that read the stream itself, at several places: of one prompt only."""
        for targets in self.targets if self.alone else ():
            if targets.stream is not None and len(here := targets.stream.at(layer, entering)):
                here = here.to(self.g.device, self.g.dtype)
                self.g.index_put_((here.row, here.position), here.vector, accumulate=True)

    def join_attention(self, layer: int) -> None:
        """Features of a layer's attention begin at all positions where they look: of one prompt only."""
        for reads in [each.attention for each in self.targets if each.attention is not None]:
            if len(here := reads.at(layer)):
                attention = cast(LinearAttention, self.prompts[0].attention)
                self.g[here.row.to(self.g.device)] += attention.frozen.back(layer, here, self.n_pos)

    def prompt_T(self, step: int) -> Tensor | None:
        """Whose the rows at a step or above are: the number of a prompt in the network; None if it has but one."""
        if self.alone:
            return None
        return sent(self.numbers.repeat_interleave(torch.tensor(self.joined[step])), self.g.device)

    def read_off(self, layer: int) -> None:
        """What the rows above a layer's MLP find of what is written there."""
        for number, rows_TPD in self._of_each(self.step(layer) + 1):
            block = self.blocks[number]
            self.sharing = self.sharing or (self.may_share and others_are_idle())
            if self.sharing:  # to the end: layers add to the same columns, one after the other
                self.waiting.append((layer, rows_TPD.clone()))
            else:
                self.prompts[number].decoder.contract_(layer, rows_TPD, block.feature[: len(rows_TPD)])
            error_PD = self.errors[number][layer, : rows_TPD.shape[1]]
            block.error[: len(rows_TPD), layer] = contract_each(rows_TPD, error_PD)
        decoder = self.prompts[0].decoder
        waiting = sum(rows.nbytes + decoder.bytes_at(layer, rows.shape[1]) for layer, rows in self.waiting)
        if waiting > BYTES_WAITING:
            self.read_waiting()

    def read_waiting(self) -> None:
        """Let idle workers read off what waits. Positions have columns of their own, so who does which changes no sum."""
        self.read_shared()
        if not (waiting := self.waiting):
            return
        decoder, block, self.waiting = self.prompts[0].decoder, self.blocks[0], []

        def read(positions: range) -> None:
            first, last = positions.start, positions.stop
            for layer, rows_TPD in waiting:
                sources = decoder.written[layer]
                ptr = [start - sources.ptr[first] for start in sources.ptr[first : last + 1]]
                written, column = decoder.between(layer, first, last), sources.column[first:last]
                contract_(block.feature[: len(rows_TPD)], rows_TPD[:, first:last], written, ptr, column)

        parts = -(-self.n_pos // POSITIONS_A_PART)
        ends = [self.n_pos * part // parts for part in range(parts + 1)]
        self.read_shared = share(read, itertools.starmap(range, itertools.pairwise(ends)))

    def read_off_attention(self, layer: int) -> None:
        """What they find of what a dictionary writes in place of the layer's attention. Where attention and MLP run in
        parallel, rows that begin at the MLP do not see it.
        """
        attention = cast(LinearAttention, self.prompts[0].attention)
        for number, rows_TPD in self._of_each(self.step(layer) + self.network.parallel):
            block = self.blocks[number]
            attention.decoder.contract_(layer, rows_TPD, block.feature[: len(rows_TPD)])
            error_PD = attention.error[layer][: rows_TPD.shape[1]]
            row = self.network.n_layers + layer
            block.error[: len(rows_TPD), row] = contract_each(rows_TPD, error_PD)

    def read_tokens(self) -> None:
        """What all rows find of the tokens, below the first layer."""
        for number, rows_TPD in self._of_each(0):
            embedding = self.prompts[number].captured.embedding[: rows_TPD.shape[1]]
            self.blocks[number].token.copy_(contract_each(rows_TPD, embedding))

    def read_tokens_through(self, reach_PPD: Tensor) -> None:
        """The same from above the first layer's attention."""
        reach = reach_PPD[: self.n_pos, : self.n_pos].flatten(1)
        self.blocks[0].token.copy_(self.g.flatten(1) @ reach.T)

    def multiply_(self, layer: int) -> None:
        """Rows above a layer, through the number that its whole stream is multiplied by."""
        if (factor := self.network.layers[layer].parts.multiplier) != 1:
            self.at(layer + 1).mul_(factor)

    def skip_back_(self, layer: int) -> None:
        """Add what rows above a layer gain through the transcoder's skip connection, output hook -> input hook.

        Where attention and MLP run in parallel, attention takes the rows as they were, and its part is added here too.
        """
        above = self.step(layer) + 1
        g_TPD, skip, attention = self.at(above), self.prompts[0].skips[layer], self.network.layers[layer]
        attends = self.network.parallel and layer not in self.replaced
        if len(g_TPD) == 0 or (skip is None and not attends):
            return
        prompt_T = self.prompt_T(above)
        if skip is None:
            attention.attend_back_(g_TPD, prompt_T)
            return
        step = max(1, self.prompts[0].decoder.chunk_bytes // (g_TPD[:1].nbytes or 1))
        place_TP = self._places(above)
        for first in range(0, len(g_TPD), step):
            some = slice(first, first + step)
            rows, place = g_TPD[some], place_TP[some].flatten()
            at_output = self.network.write_adjoint(layer, rows.view(-1, rows.shape[2]), place)
            gained = self.network.read_adjoint(layer, at_output @ skip.T, place).view_as(rows)
            if attends:
                attention.attend_back_(rows, None if prompt_T is None else prompt_T[some])
            rows += gained

    def _of_each(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """The rows at a step or above of each prompt that has some, at its block's positions."""
        counts = self.joined[step]
        for number, rows_TPD in enumerate(self.at(step).split_with_sizes(counts)):
            if counts[number]:
                yield number, rows_TPD[:, : self.blocks[number].n_pos]

    def _places(self, step: int) -> Tensor:
        """Where the positions (T, P) of the rows at a step or above are in the network.

        Those behind the end of a prompt, where its rows are zero, are taken for its last.
        """
        count, every = torch.tensor(self.joined[step]), torch.arange(self.n_pos)
        ends = torch.tensor([prompt.n_pos - 1 for prompt in self.prompts])
        own = torch.tensor(self.start)[:, None] + torch.minimum(every, ends[:, None])
        return sent(own.repeat_interleave(count, dim=0), self.g.device)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _empty_block(row: Tensor, targets: ReadOut, sources: SourceTable, options: dict[str, Any]) -> EdgeBlock:
    n_pos = int(targets.position.max()) + 1
    n_columns = sources.position_ptr[n_pos]
    edges = torch.zeros(len(targets), n_columns + (sources.n_steps + 1) * n_pos, **options)
    return EdgeBlock(row, sources.step(targets.layer, targets.of_attention), n_pos, n_columns, edges)
