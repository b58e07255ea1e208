"""Trace a prompt to an attribution graph.

Letters: P positions, D d_model, N active features, K targets.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor

from circuit_tracer.attribution.assemble import assemble
from circuit_tracer.attribution.plan import plan_memory
from circuit_tracer.attribution.progress import Progress, bar, silent
from circuit_tracer.attribution.prompt import LinearPrompt, encode_prompt, linearise
from circuit_tracer.attribution.rows import RowStore
from circuit_tracer.attribution.selection import select
from circuit_tracer.attribution.sweep import ReadOut, Sweep
from circuit_tracer.attribution.targets import Target, TargetRows, check_logit_options, resolve_targets
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.fingerprint import fingerprints
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.targets import LogitTarget
from circuit_tracer.models import tokenization


def attribute(
    prompt: tokenization.Prompt,
    model: Traceable,
    *,
    attribution_targets: Tensor | Sequence[Target] | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    offload: Literal["cpu", "disk"] | None = None,
    verbose: bool = False,
    update_interval: int = 4,
    zero_positions: Iterable[int] | None = None,
    position: int = -1,
    progress: Progress | None = None,
) -> Graph:
    """Attribution graph of a prompt (text or ids (P,)): exact edges of the frozen linear network.

    attribution_targets: None for the most probable tokens (at most `max_n_logits`, until `desired_logit_prob` is covered),
    token ids, token strings, `CustomTarget`, `LogitDifference` or `FeatureTarget`; read at `position`.
    max_feature_nodes: how many features get a row of their own, chosen by exact influence; None or 0: all active ones.
    batch_size: most rows in flight; neither it nor `update_interval` (kept for scripts written for circuit-tracer) changes the
    result. offload: do not keep decoder rows in memory; they are read again from the transcoder's files.
    zero_positions: positions without features and errors; None for circuit-tracer's rule (position 0; the chat prefix for
    Gemma 3 instruction-tuned models). progress: called with (stage, done, total); `verbose` draws a bar.

    Interrupting (Ctrl-C) ends the trace with the rows computed so far and a warning. Raises CircuitTracerError for input
    that cannot be traced.
    """
    if batch_size < 1 or update_interval < 1 or (max_feature_nodes or 0) < 0:
        raise InputError(
            f"batch_size {batch_size} and update_interval {update_interval} must be at least 1, max_feature_nodes "
            f"{max_feature_nodes} at least 0 (0 or None: all)"
        )
    if offload not in (None, "cpu", "disk"):
        raise InputError(f"offload is {offload!r}; use None, 'cpu' or 'disk'")
    check_logit_options(model.parts.config.d_vocab, max_n_logits, desired_logit_prob)
    with ExitStack() as stack, torch.no_grad():
        if progress is None:
            progress = stack.enter_context(bar()) if verbose else silent
        ids = model.ensure_tokenized(prompt)
        left_out = _left_out(ids, model, zero_positions)
        trace = Trace(model, ids, left_out, batch_size, max_feature_nodes or None, offload is None, progress)
        if verbose:
            print(f"plan: {trace.plan}", file=sys.stderr)
        trace.aim(attribution_targets, max_n_logits, desired_logit_prob, position)
        trace.run()
        settings = {
            "max_n_logits": max_n_logits,
            "desired_logit_prob": desired_logit_prob,
            "batch_size": batch_size,
            "max_feature_nodes": max_feature_nodes,
            "zero_positions": left_out,
            "position": position,
        }
        return trace.graph(settings)


class Trace:
    """One trace in progress: the linear prompt, the targets, and the rows computed so far."""

    def __init__(
        self,
        model: Traceable,
        ids: Tensor,
        left_out: list[int],
        batch_size: int,
        budget: int | None,
        may_keep_rows: bool,
        progress: Progress,
    ) -> None:
        self.started = time.perf_counter()
        self.model, self.parts, self.transcoders = model, model.parts, model.transcoders
        self.progress, self.interrupted = progress, False
        encoded = encode_prompt(self.parts, self.transcoders, ids, left_out)
        n_active = len(encoded.active)
        self.budget = n_active if budget is None else min(budget, n_active)
        self.plan = plan_memory(
            n_rows=self.budget,
            n_features=n_active,
            n_writes=encoded.n_writes(self.transcoders),
            n_layers=self.parts.config.n_layers,
            n_pos=len(ids),
            d_model=self.parts.config.d_model,
            item=self.parts.compute_dtype.itemsize,
            batch_size=batch_size,
            device=self.parts.device,
        )
        self.prompt: LinearPrompt = linearise(encoded, self.transcoders, may_keep_rows and self.plan.keep_decoder_rows)
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
        self.store = RowStore(self.parts.config.n_layers, len(table), column_layer)
        # the read-out and bias of every row, by global row number; feature rows fill in as they are computed
        self.read_out = ReadOut(table.layer, table.position, self.targets.vector)
        self.constant = self.targets.constant

    def run(self) -> None:
        """Compute the targets' rows, then those of the features that matter most.

        An interrupt keeps the features computed so far; before all targets have their rows there is nothing to keep.
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
        for block in self.sweep.blocks(read_out, self.plan.block_rows):
            self.store.add(block, row[block.row])
            self.progress("features", int(self.store.expanded.sum()), self.budget)

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


def _left_out(ids: Tensor, model: Traceable, zero_positions: Iterable[int] | None) -> list[int]:
    if zero_positions is None:
        return tokenization.zero_positions(ids, model.parts.config.model_name)
    chosen = sorted(set(zero_positions))
    if chosen and not (chosen[0] >= 0 and chosen[-1] < len(ids)):
        raise InputError(f"zero_positions {chosen} lie outside the prompt's {len(ids)} tokens")
    return chosen
