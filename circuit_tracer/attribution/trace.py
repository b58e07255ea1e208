"""One trace in progress: planned, made linear, its rows computed, its graph made.

Letters: L layers, P positions, D d_model, K targets, N_s selected features.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.assemble import assemble
from circuit_tracer.attribution.memory import free_bytes, held_bytes, is_out_of_memory, release_cached
from circuit_tracer.attribution.plan import MemoryPlan, keeps_patterns, kept_mass, plan_memory
from circuit_tracer.attribution.progress import Progress, silent
from circuit_tracer.attribution.prompt import EncodedPrompt, LinearPrompt, encode_prompt, linearise
from circuit_tracer.attribution.rows import RowStore
from circuit_tracer.attribution.selection import select
from circuit_tracer.attribution.sweep import ReadOut, Sweep, split_rows
from circuit_tracer.attribution.targets import TargetRows, resolve_targets
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.attribution.workload import Workload
from circuit_tracer.errors import ResourceError
from circuit_tracer.fingerprint import fingerprints
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.targets import LogitTarget
from circuit_tracer.models import tokenization
from circuit_tracer.ranks import Ranks
from circuit_tracer.transcoders.active import ActiveFeatures


@dataclass(frozen=True)
class Options:
    """How a trace goes about its work; `attribute` describes each."""

    batch_size: int = 512
    max_feature_nodes: int | None = None  # None: all
    may_keep_rows: bool = True
    memory: int | None = None  # bytes; None: what is free
    keep_edge_mass: float | None = None  # None: the rule of `kept_mass`
    n_targets: int = 10  # about how many there will be, for the plan
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = silent
    verbose: bool = False


class Trace:
    """One trace in progress: the linear prompt, the targets, and the rows computed so far."""

    def __init__(self, model: Traceable, ids: Tensor, left_out: list[int], options: Options) -> None:
        self.started = time.perf_counter()
        self.model, self.parts, self.transcoders = model, model.parts, model.transcoders
        self.options, self.ranks, self.interrupted = options, options.ranks, False
        self.held = held_bytes(self.parts.device)
        self.memory = options.memory or self.held + free_bytes(self.parts.device) // options.ranks.local
        encoded = self._encode(ids, left_out)
        n_active = len(encoded.active)
        self.budget = min(options.max_feature_nodes or n_active, n_active)
        self.plan = self._plan(encoded)
        if options.verbose and self.ranks.first:
            print(f"plan: {self.plan}", file=sys.stderr)
        self.prompt = self._linearise(encoded)
        self.sources = self.prompt.sources
        self.sweep = Sweep(self.prompt)

    def aim(self, attribution_targets: Any, max_n_logits: int, desired_logit_prob: float, position: int) -> None:
        """Resolve the targets and make room for rows."""
        self.targets: TargetRows = resolve_targets(
            self.parts,
            self.prompt.network,
            self.transcoders,
            self.model.tokenizer,
            attribution_targets,
            max_n_logits,
            desired_logit_prob,
            position,
        )
        table = self.targets.table
        column_layer = self.sources.active.layer[self.sources.feature_of_column]
        keep_mass = kept_mass(self.options.keep_edge_mass, self.prompt.n_pos)
        self.store = RowStore(self.parts.config.n_layers, len(table), column_layer, keep_mass, self.ranks)
        # the read-out and bias of every row, by global row number; feature rows fill in as they are computed
        self.read_out = ReadOut(table.layer, table.position, self.targets.vector)
        self.constant = self.targets.constant

    def run(self) -> None:
        """Compute the targets' rows, then those of the features that matter most.

        An interrupt keeps the features computed so far, if this process is the only one; before all targets have their rows
        there is nothing to keep.
        """
        self._compute(self.read_out, torch.arange(len(self.read_out)))
        try:
            if self.budget == len(self.sources):
                self._expand(torch.arange(len(self.sources)))
                self.selected_columns = torch.arange(len(self.sources))
            else:
                weight = self.targets.table.weight
                self.selected_columns = select(self.store, weight, self.budget, self._expand)
        except KeyboardInterrupt:
            if self.ranks.world > 1:  # each process may be elsewhere
                raise
            self.interrupted = True
            self.selected_columns = torch.nonzero(self.store.expanded).flatten()
            warnings.warn(
                f"interrupted: the graph holds the {len(self.selected_columns)} features computed so far of {self.budget}",
                stacklevel=3,
            )

    def graph(self, settings: dict[str, Any]) -> Graph:
        """The graph of the rows computed."""
        selected = self.sources.feature_of_column[self.selected_columns].sort().values
        active, table = self.sources.active, self.targets.table
        bias, pre = self._balance(selected)
        self.sources.release()
        edges, balance = assemble(self.store, self.sources, selected, self.parts.config.n_layers, bias, pre)
        ids = self.prompt.captured.ids
        tokenizer = self.model.tokenizer
        return Graph(
            input_string=tokenizer.decode(ids.tolist())
            if tokenizer is not None
            else " ".join(str(i) for i in ids.tolist()),
            input_tokens=ids,
            active_features=torch.stack([active.layer, active.position, active.index], dim=1),
            adjacency_matrix=edges,
            cfg=self.parts.config,
            selected_features=selected,
            activation_values=active.value,
            logit_targets=[LogitTarget(label, int(i)) for label, i in zip(table.label, table.token_id, strict=True)],
            logit_probabilities=table.weight.cpu(),
            scan=self.transcoders.scan,
            vocab_size=self.parts.config.d_vocab,
            balance=balance,
            targets=table,
            token_strings=tokenization.token_strings(ids, tokenizer),
            reconstruction=self.prompt.reconstruction,
            provenance=self._provenance(settings),
        )

    def _provenance(self, settings: dict[str, Any]) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "generator": {"name": "circuit-tracing", "version": version("circuit-tracing")},
            "model": self.parts.config.to_dict(),
            "transcoder": {
                "kind": self.transcoders.kind,
                "scan": self.transcoders.scan,
                "input_hook": self.transcoders.feature_input_hook,
                "output_hook": self.transcoders.feature_output_hook,
            },
            "fingerprint": fingerprints(self.parts, self.transcoders),
            "settings": settings,
            "memory_plan": str(self.plan),
            "processes": self.ranks.world,
            "dropped_mass": max((block.dropped for block in self.store.blocks), default=0.0),
            "interrupted": self.interrupted,
            "seconds": round(time.perf_counter() - self.started, 3),
            "torch": torch.__version__,
            "device": str(self.parts.device),
        }

    def _expand(self, columns: Tensor) -> None:
        """Compute and keep the rows of features, given by column."""
        features = self.sources.feature_of_column[columns]
        read_out, _ = self._feature_rows(features)
        self._compute(read_out, len(self.targets.table) + columns)

    def _compute(self, read_out: ReadOut, row: Tensor) -> None:
        """Compute this process' share of some rows; when an allocation fails, those that are missing once more."""
        # rows of all layers and positions for every process
        order = torch.argsort(read_out.position * (self.parts.config.n_layers + 1) + read_out.layer, stable=True)
        pending = order[self.ranks.rank :: self.ranks.world].sort().values
        while len(pending):
            done, failed = torch.zeros(len(row), dtype=torch.bool), None
            try:
                for block in self.sweep.blocks(read_out.take(pending), self.plan.block_rows):
                    here = pending[block.row]
                    self.store.add(block, row[here])
                    self.store.mark(row[here])  # at once: an interrupt keeps what is there
                    done[here] = True
                    self.options.progress("features", int(self.store.expanded.sum()), self.budget)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # whose frames hold what is to be freed
            pending = pending[~done[pending]]
            if failed is not None:
                self._make_room(read_out.take(pending), failed)
        self.store.mark(row)  # those of the other processes too

    def _make_room(self, missing: ReadOut, error: BaseException) -> None:
        """Halve the rows in flight; with one row left, stop keeping decoder rows."""
        largest = max(map(len, split_rows(missing.layer, missing.position, self.plan.block_rows)), default=1)
        if largest > 1:
            self.plan = replace(self.plan, block_rows=largest).halved()
        elif self.sources.release():
            self.plan = replace(self.plan, keep_decoder_rows=False)
        else:
            raise ResourceError(
                f"an allocation failed with one row in flight ({error or 'no memory'}). {int(self.store.expanded.sum())} of "
                f"{self.budget} rows were done; free memory, or expand fewer features (max_feature_nodes)"
            ) from error
        self.sources.chunk_bytes = self.plan.chunk_bytes
        release_cached(self.parts.device)
        warnings.warn(f"an allocation failed; going on with {self.plan.block_rows} rows in flight", stacklevel=2)

    def _encode(self, ids: Tensor, left_out: list[int]) -> EncodedPrompt:
        """Run the model and find the active features, which are those of the first process."""
        parts, n_pos = self.parts, len(ids)
        before = self._workload(torch.zeros(parts.config.n_layers, n_pos, dtype=torch.int64))
        encoded = None
        if keeps_patterns(before, self.held, self.memory):
            try:
                encoded = encode_prompt(parts, self.transcoders, ids, left_out, keep_patterns=True)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            release_cached(parts.device)
        if encoded is None:
            encoded = encode_prompt(parts, self.transcoders, ids, left_out, keep_patterns=False)
        columns = (encoded.active.layer, encoded.active.position, encoded.active.index, encoded.active.value)
        return replace(encoded, active=ActiveFeatures(*map(self.ranks.of_first, columns)))

    def _workload(self, active_LP: Tensor) -> Workload:
        options, transcoders = self.options, self.transcoders
        return Workload.of(
            self.parts.config,
            active_LP,
            cross_layer=len(transcoders.target_layers(0)) > 1,
            n_targets=options.n_targets,
            n_rows=options.max_feature_nodes,
            features_a_layer=transcoders.d_transcoder,
            skip=transcoders.skip_connection,
            item=self.parts.compute_dtype.itemsize,
            processes=options.ranks.world,
            on_gpu=self.parts.device.type == "cuda",
        )

    def _plan(self, encoded: EncodedPrompt) -> MemoryPlan:
        """The plan of this process; if one process has too little memory, none goes on."""
        plan, refused, options = None, None, self.options
        try:
            plan = plan_memory(
                self._workload(encoded.counts_LP),
                self.held,
                self.memory,
                options.batch_size,
                options.may_keep_rows,
                bool(encoded.network.captured.patterns),
            )
        except ResourceError as error:
            refused = error
        if self.ranks.anywhere(plan is None) or plan is None:
            raise refused or ResourceError("another process has too little memory for its share of this trace")
        return plan

    def _linearise(self, encoded: EncodedPrompt) -> LinearPrompt:
        if self.plan.keep_decoder_rows:
            try:
                return linearise(encoded, self.transcoders, True, self.plan.chunk_bytes)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self.plan = replace(self.plan, keep_decoder_rows=False)
            release_cached(self.parts.device)
        return linearise(encoded, self.transcoders, False, self.plan.chunk_bytes)

    def _feature_rows(self, features: Tensor) -> tuple[ReadOut, Tensor]:
        """Encoder rows (n, D) and biases (n,) of features given by canonical index."""
        active, dtype = self.sources.active, self.parts.compute_dtype
        layer, position, index = active.layer[features], active.position[features], active.index[features]
        vector = torch.empty(len(features), self.parts.config.d_model, dtype=dtype)
        bias = torch.empty(len(features), dtype=dtype)
        for depth in layer.unique().tolist():
            here = layer == depth
            unique, inverse = torch.unique(index[here], return_inverse=True)
            rows, biases = self.transcoders.encoder_rows(depth, unique)
            vector[here], bias[here] = rows.to("cpu", dtype)[inverse], biases.to("cpu", dtype)[inverse]
        return ReadOut(layer, position, vector), bias

    def _balance(self, selected: Tensor) -> tuple[Tensor, Tensor]:
        """Bias and pre-activation (K + N_s,) of targets and selected features (README.md §5)."""
        table, active = self.targets.table, self.sources.active
        rows, bias = self._feature_rows(selected)
        own = torch.cat([self.constant.cpu(), bias])
        layer, position = torch.cat([table.layer, rows.layer]), torch.cat([table.position, rows.position])
        vector = torch.cat([self.targets.vector.cpu(), rows.vector])
        constant, true = torch.empty_like(own), torch.empty_like(own)
        for depth in layer.unique().tolist():
            here = layer == depth
            last = depth == self.parts.config.n_layers
            fed = self.prompt.constant_final if last else self.prompt.constant_inputs[depth]
            read = self.prompt.captured.final if last else self.prompt.network.transcoder_input(depth)
            constant[here] = (vector[here] * fed.cpu()[position[here]]).sum(1)
            true[here] = (vector[here] * read.cpu()[position[here]]).sum(1)
        pre = own + true
        pre[len(table) :] = active.value[selected].to(pre.dtype)
        return own + constant, pre
