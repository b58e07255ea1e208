"""How targets are measured in a pass: tokens behind the final norm, features where the dictionary reads, others in the stream.

The stream is read with the vectors that the graph keeps of a target. The norms before it are in them, and of attention the
other side of the score, all as on the clean prompt: measured is the linear form that the graph explains.
Letters: K targets, B sequences, P positions, D d_model, n vectors at a place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.attribution.stream_targets import StreamTarget
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.targets import TargetKind
from circuit_tracer.graph.validation import Measure
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.run import Place, Visit

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

MEASURES: dict[TargetKind, Measure] = {
    "logit": "probability",
    "attention": "score",
    "direction": "value",
    "feature": "pre-activation",
}
_FINAL: Place = ("final", 0)  # behind the final norm, which is no site of a layer
Seen = dict[Place, Tensor]  # (B, n, D) what a pass has at the vectors of a place


class _Vectors(NamedTuple):
    """At one place: column (n,) of the target, position (n,), vector (n, D)."""

    column: Tensor
    position: Tensor
    vector: Tensor


class TargetReads:
    """K targets of a graph, rows of its target table. Raises InputError for one whose vectors are not known."""

    def __init__(self, graph: Graph, model: Traceable, network: FrozenNetwork, rows: Tensor) -> None:
        self.graph, self.network, self.rows = graph, network, rows
        self.transcoders, table = model.transcoders, graph.targets
        self.kinds = [table.kind[row] for row in rows.tolist()]
        self.device, self.dtype = network.parts.device, network.parts.compute_dtype
        self.position = table.position[rows].to(self.device)
        self._at: dict[Place, _Vectors] = {}
        if tokens := self._columns("logit"):
            self._add(_FINAL, tokens, self.position[tokens], self._of_tokens(tokens))
        for column in self._columns("feature"):
            layer, _ = table.feature(int(rows[column]))
            place = self.transcoders.feature_input_hook, layer
            self._add(place, [column], self.position[[column]], self._of_feature(column)[0])
        for (layer, entering), reads in _by_place(self._kept).items():
            self._add(_site(layer, entering, network.n_layers), reads.row.tolist(), reads.position, reads.vector)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def measure(self) -> Measure:
        """What is measured of the first target."""
        return MEASURES[self.kinds[0]]

    @property
    def first_token(self) -> tuple[int, int] | None:
        """(token id, position) of the first target, if it is a token."""
        row = int(self.rows[0])
        return (int(self.graph.targets.token_id[row]), int(self.position[0])) if self.kinds[0] == "logit" else None

    def visits(self, seen: Seen) -> dict[str, Visit]:
        """By site; a pass fills `seen` for `values`."""

        def keep(site: str) -> Visit:
            def visit(layer: int, activation: Tensor) -> None:
                if (site, layer) in self._at:
                    seen[site, layer] = activation[:, self._at[site, layer].position].to(self.dtype)

            return visit

        return {site: keep(site) for site, _ in self._at if site != _FINAL[0]}

    def values(self, final_BPD: Tensor, seen: Seen) -> Tensor:
        """(B, K) what the vectors read, without constants: linear in `final` and `seen`."""
        found = torch.zeros(len(final_BPD), len(self), device=self.device, dtype=self.dtype)
        for place, (column, position, vector) in self._at.items():
            there = final_BPD[:, position].to(self.dtype) if place == _FINAL else seen[place]
            found = found.index_add(1, column, (there * vector).sum(-1))
        return found

    @cached_property
    def clean(self) -> Tensor:
        """(K,) float64, on the clean prompt: demeaned logits, and the values of other targets. Raises InputError for a graph
        that does not say these.
        """
        found = torch.zeros(len(self), dtype=torch.float64)
        if tokens := self._columns("logit"):
            final = self.network.captured.final[self.position[tokens]]
            found[tokens] = (final * self._at[_FINAL].vector).sum(-1).double().cpu()
        for column in range(len(self)):
            if self.kinds[column] != "logit":
                found[column] = self._value(column)
        return found

    def aims(self) -> list[int | StreamTarget]:
        """The same targets to trace again, in the order of the graph, with whatever dictionary."""
        order = torch.argsort(self.rows).tolist()
        return [
            int(self.graph.targets.token_id[self.rows[each]]) if self.kinds[each] == "logit" else self._aim(each)
            for each in order
        ]

    def _aim(self, column: int) -> StreamTarget:
        table, row, kind = self.graph.targets, int(self.rows[column]), self.kinds[column]
        reads = self._of_feature(column)[1] if kind == "feature" else self._kept.of_rows(torch.tensor([column]))
        read = sum(
            float((self.network.stream(layer, entering)[here.position] * here.vector).sum())
            for (layer, entering), here in _by_place(reads).items()
        )
        constant, weight = self._value(column) - read, float(table.weight[row])
        kept: TargetKind = "attention" if kind == "attention" else "direction"
        return StreamTarget(table.label[row], reads.to("cpu"), constant, kept, weight)

    def _value(self, column: int) -> float:
        row, balance = int(self.rows[column]), self.graph.balance
        if balance is None:
            raise _unknown(f"the value of target {self.graph.targets.label[row]!r}")
        return float(balance.pre_activation[self.graph.nodes.layout.target_start + row])

    def _add(self, place: Place, columns: list[int], position: Tensor, vector: Tensor) -> None:
        more = _Vectors(
            torch.tensor(columns, device=self.device),
            position.to(self.device),
            vector.to(self.device, self.dtype),
        )
        known = self._at.get(place)
        self._at[place] = (
            more if known is None else _Vectors(*(torch.cat(pair) for pair in zip(known, more, strict=True)))
        )

    def _columns(self, kind: TargetKind) -> list[int]:
        return [column for column, each in enumerate(self.kinds) if each == kind]

    def _of_tokens(self, columns: list[int]) -> Tensor:
        """(n, D) demeaned rows of the unembedding."""
        weight = self.network.parts.unembed.weight
        ids = self.graph.targets.token_id[self.rows[columns]].to(weight.device)
        return weight[ids].to(self.dtype) - weight.mean(0, dtype=self.dtype)

    def _of_feature(self, column: int) -> tuple[Tensor, StreamReads]:
        """What it reads (1, D), and the same in the stream."""
        layer, index = self.graph.targets.feature(int(self.rows[column]))
        position = self.position[[column]]
        x_PD = partial(self.network.transcoder_input, layer)
        row = self.transcoders.reads(layer, torch.tensor([index]), position, x_PD)[0].to(self.device, self.dtype)
        vector, zero = self.network.read_adjoint(layer, row, position), torch.zeros_like(position)
        return row, StreamReads(zero, zero + layer, zero.bool(), position, vector)

    @cached_property
    def _kept(self) -> StreamReads:
        """What the graph keeps of those that are neither tokens nor features, by column."""
        wanted = torch.tensor([*self._columns("attention"), *self._columns("direction")], dtype=torch.int64)
        kept = self.graph.targets.reads
        if kept is None:
            kept = StreamReads.empty(self.network.parts.config.d_model, self.dtype)
        known = set(kept.row.tolist())
        for row in self.rows[wanted].tolist():
            if row not in known:
                raise _unknown(f"what target {self.graph.targets.label[row]!r} reads")
        reads = kept.of_rows(self.rows[wanted]).to(self.device, self.dtype)
        return replace(reads, row=wanted.to(self.device)[reads.row])


def measurable_targets(graph: Graph) -> Tensor:
    """(K,) rows of the target table that can be measured, tokens first; not those of which the graph keeps no vectors.

    Raises InputError if there are none.
    """
    table = graph.targets
    known = set() if table.reads is None else set(table.reads.row.tolist())
    rows = [row for row, kind in enumerate(table.kind) if kind in ("logit", "feature") or row in known]
    if not rows:
        raise _unknown(f"what the targets ({', '.join(table.label[:3])}) read")
    return torch.tensor(sorted(rows, key=lambda row: table.kind[row] != "logit"))


def _by_place(reads: StreamReads) -> dict[tuple[int, bool], StreamReads]:
    places = dict.fromkeys(zip(reads.layer.tolist(), reads.entering.tolist(), strict=True))
    return {place: reads.at(*place) for place in places}


def _unknown(what: str) -> InputError:
    return InputError(
        f"{what} is not in this graph: the graph was made, or its file written, by something that does not keep it, as "
        "circuit-tracer does not. Trace the prompt again, and save it as .safetensors."
    )


def _site(layer: int, entering: bool, n_layers: int) -> Place:
    if not entering:
        return "hook_resid_mid", layer
    return ("hook_resid_post", n_layers - 1) if layer == n_layers else ("hook_resid_pre", layer)
