"""What a trace will have to hold, in bytes by what they are, before any of it exists.

Every formula here stands for arrays of the modules named beside it; benchmarks/tracing/memory_plan.py holds the sums
against what processes really took.

Letters: L layers, P positions, D d_model, H heads, K key/value heads, N active features, T rows of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.attribution.decoder_rows import CHUNK_BYTES, stored_once
from circuit_tracer.attribution.finished_block import EDGES_A_PIECE
from circuit_tracer.attribution.row_blocks import BYTES_WAITING, BlockTree, most_rows
from circuit_tracer.kernels.attend_back import BYTES_IN_FLIGHT, BYTES_IN_FLIGHT_ON_GPU
from circuit_tracer.models.attention import QUERIES_A_TILE
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.transcoders.base import Transcoders

PIECE = CHUNK_BYTES  # what encoder blocks and gathered decoder rows are cut to
SAMPLED_ROWS = 512  # that stand for all when a plan is made, so that it takes no longer for long prompts
BYTES_A_FEATURE, BYTES_A_SOURCE = 28, 8  # that is active; that writes to a layer (sources.py)
BYTES_AN_ADDRESS = 56  # of a source whose decoder row is in a table, while a layer is read off (decoder_tables.py)
BYTES_AN_EDGE = 24  # of a graph while it is checked: source, weight, and the target of each edge
BYTES_A_THINNED_EDGE = 24  # beside it, while small edges are looked for: size, step, place, mass (finished_block.py)
# What glibc keeps for reuse of what a thread gave back, at most: M_TRIM_THRESHOLD, twice the largest array that it made no
# mapping of its own for, which grows up to 32 MB.
KEPT_BY_MALLOC = 64 * 2**20
ATTENTION_COPIES = 4  # of a layer's scores while its softmax is taken
# arrays (L, P, D): inputs and outputs; then errors (twice) and constants too; and all that exists while these are made
CAPTURED, STATE, STATE_AT_ONCE = 2, 5, 6


@dataclass(frozen=True)
class TraceSizes:
    """The sizes of one trace: a prompt, its active features, and how many rows will be computed."""

    config: ModelConfig
    active_LP: Tensor  # (L, P) active features of each layer and position
    written_LP: Tensor  # (L, P) decoder rows that write to each layer there: those of lower layers too, if cross-layer
    n_targets: int
    n_rows: int  # of features
    features_a_layer: int  # of the dictionary
    skip: bool
    item: int  # bytes a number
    processes: int = 1  # that share the rows
    on_gpu: bool = False
    attention: int = 0  # layers whose attention a dictionary replaces
    distinct_L: Tensor | None = None  # (L,) features of each layer that are active anywhere; None: as many as can be

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        transcoders: Transcoders,
        active_LP: Tensor,
        n_targets: int,
        n_rows: int | None,
        item: int,
        processes: int = 1,
        on_gpu: bool = False,
        attention: int = 0,
        distinct_L: Tensor | None = None,
    ) -> TraceSizes:
        """n_rows: None or 0 for all active features."""
        n_active = int(active_LP.sum())
        return cls(
            config=config,
            active_LP=active_LP,
            written_LP=active_LP.cumsum(0) if len(transcoders.target_layers(0)) > 1 else active_LP,
            n_targets=n_targets,
            n_rows=min(n_rows or n_active, n_active),
            features_a_layer=transcoders.d_transcoder,
            skip=transcoders.skip_connection,
            item=item,
            processes=processes,
            on_gpu=on_gpu,
            attention=attention,
            distinct_L=distinct_L,
        )

    @property
    def n_pos(self) -> int:
        """P."""
        return int(self.active_LP.shape[1])

    @property
    def n_active(self) -> int:
        """N."""
        return int(self.active_LP.sum())

    @cached_property
    def tables(self) -> Tensor:
        """(L,) rows of each layer's table of decoder rows (decoder_tables.py)."""
        distinct = self.distinct_L
        if distinct is None:
            distinct = self.active_LP.sum(1).clamp_max(self.features_a_layer)
        return distinct.cumsum(0) if self.cross_layer else distinct

    @property
    def cross_layer(self) -> bool:
        """Whether features write to later layers too, as far as these tell."""
        return bool((self.written_LP.sum(1) > self.active_LP.sum(1)).any())

    @property
    def stored_once(self) -> bool:
        """Whether decoder rows are kept once each, if they are kept."""
        return stored_once(int(self.written_LP.sum()), int(self.tables.sum()))

    @property
    def decoder_rows(self) -> int:
        """Decoder rows of all active features, if they are kept (decoder_rows.py)."""
        count = self.tables.sum() if self.stored_once else self.written_LP.sum()
        told = (16 + self.item) * int(self.written_LP.sum()) if self.stored_once and self.on_gpu else 0
        return int(count) * self.config.d_model * self.item + told

    @property
    def patterns(self) -> int:
        """Attention patterns of all layers (models/capture.py)."""
        return self.config.n_layers * self.config.n_heads * self.n_pos**2 * self.item

    @property
    def scores(self) -> int:
        """What patterns are made of, of all layers."""
        config = self.config
        width = (config.n_heads + config.n_key_value_heads) * config.d_head + config.n_heads
        return config.n_layers * self.n_pos * width * self.item

    @property
    def projections(self) -> int:
        """What rows are multiplied by in the attention of all layers, made once on a GPU (models/frozen.py): three digits in
        bfloat16 of each float32.
        """
        config, each = self.config, 6 if self.item == 4 else self.item
        heads = config.n_heads + config.n_key_value_heads
        return config.n_layers * config.d_model * heads * config.d_head * each if self.on_gpu else 0

    def state(self, copies: int, keep_patterns: bool) -> int:
        """The frozen prompt (prompt.py)."""
        n_arrays = copies * self.config.n_layers + 3 * self.attention  # outputs of heads, what replaces them, errors
        arrays = n_arrays * self.n_pos * self.config.d_model * self.item
        columns = BYTES_A_FEATURE * self.n_active + BYTES_A_SOURCE * int(self.written_LP.sum())
        return arrays + (self.patterns if keep_patterns else self.scores) + columns

    def forward(self, keep_patterns: bool) -> int:
        """Beside the state, while the model runs: one layer's attention, its MLP, the masks."""
        queries = self.n_pos if keep_patterns else min(self.n_pos, QUERIES_A_TILE)
        attention = ATTENTION_COPIES * self.config.n_heads * queries * self.n_pos * self.item
        return max(attention, 3 * self.n_pos * self.config.d_mlp * self.item) + 9 * self.n_pos**2

    def encoding(self) -> int:
        """Beside the state: one block of pre-activations, which of them are active, and its encoder rows."""
        return 2 * min(PIECE, self.n_pos * self.features_a_layer * self.item) + min(
            PIECE, self.features_a_layer * self.config.d_model * self.item
        )

    def reading(self, keep_rows: bool, chunk: int, workers: int = 1) -> int:
        """Beside the state and the rows kept: what a source layer writes to all others, for each worker, or a chunk's rows
        (decoder_rows.py).
        """
        if not keep_rows:
            return self.gathered(chunk)
        row, layers = self.config.d_model * self.item, len(self.tables)
        own = self.tables.diff(prepend=self.tables.new_zeros(1)) if self.cross_layer else self.tables
        targets = torch.arange(layers, 0, -1) if self.cross_layer else torch.ones_like(own)
        of_workers = int((own * targets).sort(descending=True).values[:workers].sum())
        copies = 0 if self.stored_once else 2 * workers * int(self.active_LP.sum(1).max())
        return (of_workers + copies) * row

    def gathered(self, chunk: int) -> int:
        """One chunk of decoder rows, and as many on their way there."""
        row = self.config.d_model * self.item
        return 2 * min(int(self.tables.max()) * row, max(chunk, row))

    @cached_property
    def typical(self) -> tuple[Tensor, Tensor, float]:
        """Layer and position of some of this process' rows, and how many rows each of them stands for.

        They are spread evenly over the active features: influence is not known yet.
        """
        ends = self.active_LP.T.flatten().cumsum(0)  # by position, then layer
        count = -(-self.n_rows // self.processes)
        sampled = min(count, SAMPLED_ROWS)
        place = torch.linspace(0, max(0, self.n_active - 1), sampled, dtype=torch.float64).long()
        cell = torch.searchsorted(ends, place, right=True).clamp_max(len(ends) - 1)
        return cell % self.config.n_layers, cell // self.config.n_layers, count / max(1, sampled)

    @cached_property
    def _tree(self) -> BlockTree:
        return BlockTree(*self.typical, self.config.d_model)

    def blocks(self, block_rows: int, numbers: int = 0) -> list[tuple[int, int, float]]:
        """(rows, positions, how many) of the blocks that typical rows are swept in (row_blocks.py), the targets' first."""
        most = most_rows(block_rows, numbers, self.n_pos * self.config.d_model)
        whole, rest = divmod(self.n_targets, most)
        targets = [(most, self.n_pos, float(whole))] * bool(whole) + [(rest, self.n_pos, 1.0)] * bool(rest)
        return targets + self._tree.blocks(block_rows, numbers)

    def at_once(self, blocks: list[tuple[int, int, float]]) -> int:
        """How many of these blocks there are: no more are in flight at once."""
        return max(1, math.ceil(sum(many for _, _, many in blocks)))

    @cached_property
    def width_P(self) -> Tensor:
        """Edges of a row that ends at each position: to features, errors, tokens."""
        place = torch.arange(1, self.n_pos + 1)
        return self.active_LP.sum(0).cumsum(0) + (self.n_errors + 1) * place

    @property
    def n_errors(self) -> int:
        """Errors of a position: of MLPs, and with a dictionary of attention as many of these."""
        return self.config.n_layers * (2 if self.attention else 1)

    def edge_rows(self, blocks: list[tuple[int, int, float]], workers: int = 1) -> int:
        """Finished rows (finished_rows.py), and those that are being finished.

        Where the rows stand that will matter most is not known: all are taken to stand where active features do, but the
        blocks in hand are as wide as any can be.
        """
        widest = int(self.width_P[-1])
        every = sum(rows * many * int(self.width_P[n_pos - 1]) for rows, n_pos, many in blocks)
        wider = max((rows * (widest - int(self.width_P[n_pos - 1])) for rows, n_pos, _ in blocks), default=0)
        return int(every + workers * wider) * self.item

    def thinning(self, workers: int) -> int:
        """Beside the finished rows, while each worker looks which edges of a piece are small (finished_block.py)."""
        return workers * BYTES_A_THINNED_EDGE * max(int(self.width_P[-1]), EDGES_A_PIECE)

    def unreturned(self, blocks: list[tuple[int, int, float]], workers: int) -> int:
        """What the allocator of a CPU's memory keeps of gradients and edges that are done with: for each worker, and for the
        thread that waits for them.
        """
        gradient = max((rows * n_pos for rows, n_pos, _ in blocks), default=0) * self.config.d_model * self.item
        return 0 if self.on_gpu else (workers + 1) * min(KEPT_BY_MALLOC, gradient)

    def in_flight(self, blocks: list[tuple[int, int, float]], workers: int = 1) -> int:
        """For each worker: gradients of the largest block, and what a chunk of it takes on its way through a layer
        (kernels/attend_back), and where its sources are. With several, rows of some layers wait to be read off, and as many are
        being read off (sweep.py).

        On a GPU the first block's edges exist twice, while the kernel that adds to them is tuned (kernels/contract).
        """
        config, largest, waiting = self.config, 0, 0
        chunk = BYTES_IN_FLIGHT_ON_GPU if self.on_gpu else 2 * BYTES_IN_FLIGHT
        for rows, n_pos, _ in blocks:
            gradient = rows * n_pos * config.d_model * self.item
            heads = (config.n_heads + config.n_key_value_heads) * config.d_head
            per_row = n_pos * max(2 * heads, 3 * config.d_model if self.skip else 0) * self.item
            tuned = rows * int(self.width_P[n_pos - 1]) * self.item if self.on_gpu else 0
            waiting = max(waiting, min(2 * BYTES_WAITING, config.n_layers * gradient))
            largest = max(largest, gradient + tuned + min(rows * per_row, max(chunk, per_row)))
        weights = 2 * config.d_model * config.n_heads * config.d_head * self.item
        addresses = BYTES_AN_ADDRESS * int(self.written_LP.sum(1).max()) if self.stored_once else 0
        return workers * (largest + weights + addresses) + (workers - 1) * waiting

    def graph(self) -> int:
        """The graph's edges, and what checking them takes (assemble.py, graph/edges.py)."""
        layer, position, each = self.typical
        below = torch.zeros(self.config.n_layers + 1, self.n_pos, dtype=torch.int64)
        below[1:] = self.active_LP.cumsum(0).cumsum(1)
        share, each = self.n_rows / max(1, self.n_active), self.processes * each
        features = share * (each * float(below[layer, position].sum()) + self.n_targets * int(below[-1, -1]))
        others = each * float(((layer + 1) * (position + 1)).sum())
        others *= self.n_errors / self.config.n_layers
        return int((features + others + self.n_targets * (self.n_errors + 1) * self.n_pos) * BYTES_AN_EDGE)
