"""An interrupted trace as values that a file can hold, and a trace that goes on from them.

The rows are kept whole, with edges from features that are no nodes yet, as they lie in the store; with them the rows that
were asked for last and the plan, so that the blocks to come are those of a trace that was never interrupted: on the same
machine its graph is the same to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_block import FinishedBlock, SparseEdges
from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.plan import MemoryPlan
from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.targets import TargetRows
from circuit_tracer.attribution.task import Task
from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.fingerprint import fingerprints, require_same
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.unfinished import Unfinished

_COLUMNS = ("row", "total", "mass", "step_ptr")  # of every block, beside its edges
_SPARSE = ("ptr", "column", "value")


@dataclass(frozen=True)
class Continuation:
    """Where to go on. asked: rows of the call in hand, numbered as in the store; the sizes are those of the plan."""

    identity: dict[str, Any]
    blocks: list[FinishedBlock]
    asked: Tensor
    block_rows: int
    block_numbers: int
    chunk_bytes: int

    def same_blocks(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan with blocks of the sizes that the trace began with, if they are no larger than what fits now."""
        return replace(
            plan,
            block_rows=min(plan.block_rows, self.block_rows),
            block_numbers=self.block_numbers,
            chunk_bytes=min(plan.chunk_bytes, self.chunk_bytes),
        )

    def require_same_trace(self, identity: dict[str, Any]) -> None:
        """Raise CompatibilityError, naming what differs, unless it is the trace that was interrupted."""
        advice = "Go on with what the trace began with, or start anew (without --resume)."
        require_same(self.identity, identity, "the interrupted trace", advice)

    def require_rows_of(self, store: FinishedRows) -> None:
        """Raise FileFormatError unless the rows can be those of a store that is empty yet."""
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(block.row for block in self.blocks)])
        inside = all(bool(((each >= 0) & (each < len(store.done))).all()) for each in (rows, self.asked))
        whole = all(_is_whole(block, store) for block in self.blocks)
        if not inside or len(rows.unique()) != len(rows) or not whole:
            raise FileFormatError("the rows of the interrupted trace are damaged; trace it anew (without --resume)")


def identity_of(task: Task, prompt: LinearPrompt, targets: TargetRows, budget: int, keep_mass: float) -> dict[str, Any]:
    """What every row of a trace follows from, as JSON values that people can compare."""
    active, table = prompt.sources.active, targets.table
    described = [f"{text!r}" for text in table.label[:3]] + ["..."] * (len(table) > 3)
    # tokens are known by their ids; what was made for this trace, by the vector that reads it
    made = [targets.read_out.vector.float()[[kind != "logit" for kind in table.kind]]]
    if (reads := targets.read_out.stream) is not None:
        made += [reads.row, reads.layer, reads.entering, reads.position, reads.vector.float()]
    places = _digest([table.layer, table.position, table.token_id, *made])
    parts = fingerprints(task.model.parts, task.model.transcoders, task.model.attention)
    return {
        "prompt": f"{len(task.ids)} tokens ({_digest([task.ids])})",
        "targets": f"{len(table)}, {', '.join(described)} ({places})",
        "active features": f"{len(active.layer):,} ({_digest([active.layer, active.position, active.index])})",
        "max_feature_nodes": budget,
        "zero_positions": list(task.left_out),
        "keep_edge_mass": keep_mass,
        "number format": str(prompt.error.dtype).removeprefix("torch."),
        "model": parts["model"],
        "transcoders": parts["transcoder"],
        **({} if "attention" not in parts else {"attention": parts["attention"]}),
        **({} if task.intervention is None else {"edits": "; ".join(task.intervention.words)}),
    }


def unfinished(identity: dict[str, Any], store: FinishedRows, asked: Tensor, plan: MemoryPlan) -> Unfinished:
    """The rows of a store, as a graph keeps them."""
    tensors = {"asked": asked}
    for number, block in enumerate(store.blocks):
        edges = block.edges
        parts = {name: getattr(edges, name) for name in _SPARSE} if isinstance(edges, SparseEdges) else {"edges": edges}
        parts |= {"row": block.row, "total": block.total, "mass": block.mass}
        parts["step_ptr"] = torch.tensor(block.step_ptr)
        tensors |= {f"{number:06d}.{name}": tensor for name, tensor in parts.items()}
    facts = {
        "identity": identity,
        "block_rows": plan.block_rows,
        "block_numbers": plan.block_numbers,
        "chunk_bytes": plan.chunk_bytes,
        "blocks": [[block.n_pos, block.n_columns, block.dropped] for block in store.blocks],
    }
    return Unfinished(facts, tensors)


def continuation_of(graph_or_path: Graph | str | Path) -> Continuation:
    """Of an interrupted graph, or a file of one. Raises InputError for a graph that is complete, or kept without its rows."""
    graph = as_graph(graph_or_path)
    name = "this graph" if isinstance(graph_or_path, Graph) else str(graph_or_path)
    if graph.unfinished is None:
        state = "was interrupted, but its rows were not kept" if graph.provenance.get("interrupted") else "is complete"
        raise InputError(f"{name} {state}; there is nothing to go on with. Trace it anew (without resume).")
    facts, tensors = graph.unfinished.facts, graph.unfinished.tensors
    try:
        blocks = [_block(tensors, number, *shape) for number, shape in enumerate(facts["blocks"])]
        return Continuation(
            identity=dict(facts["identity"]),
            blocks=blocks,
            asked=tensors["asked"],
            block_rows=int(facts["block_rows"]),
            block_numbers=int(facts.get("block_numbers", 0)),  # files of earlier versions do not have it
            chunk_bytes=int(facts["chunk_bytes"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{name} does not hold the rows of an interrupted trace ({error!r}); trace it anew"
        ) from error


def _block(tensors: dict[str, Tensor], number: int, n_pos: int, n_columns: int, dropped: float) -> FinishedBlock:
    part = {name: tensors.get(f"{number:06d}.{name}") for name in (*_COLUMNS, *_SPARSE, "edges")}
    row, total, mass, ptr = (_present(part[name], name) for name in _COLUMNS)
    edges = part["edges"]
    kept = edges if edges is not None else SparseEdges(*(_present(part[name], name) for name in _SPARSE))
    return FinishedBlock(row, n_pos, n_columns, kept, total, mass, ptr.tolist(), dropped)


def _is_whole(block: FinishedBlock, store: FinishedRows) -> bool:
    """Whether the parts of a block fit each other and the store."""
    n_rows, ptr, edges = len(block.row), block.step_ptr, block.edges
    columns = (block.row, block.total, block.mass)
    fits = all(each.ndim == 1 and len(each) == n_rows for each in columns) and 0 <= block.n_columns <= store.n_columns
    fits = (
        fits
        and len(ptr) == store.n_steps + 2
        and ptr == sorted(ptr, reverse=True)
        and ptr[0] == n_rows
        and ptr[-1] >= 0
    )
    if not isinstance(edges, SparseEdges):
        return fits and edges.shape == (n_rows, block.width) and edges.is_floating_point()
    size, ends = len(edges.value), edges.ptr.tolist()
    fits = fits and len(ends) == n_rows + 1 and ends == sorted(ends) and (ends[0], ends[-1]) == (0, size)
    inside = len(edges.column) == size and bool(((edges.column >= 0) & (edges.column < block.width)).all())
    return fits and inside and edges.value.is_floating_point()


def _present(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise KeyError(name)
    return tensor


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
