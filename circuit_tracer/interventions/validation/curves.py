"""How a small change of the residual stream spreads: in the model, and in the network that the dictionary makes of it.

Both hold attention patterns as on the clean prompt and let norms react. In the one MLPs are real; in the other they are the
dictionary, encoded anew, plus its errors on the clean prompt (iterative semantics). Perturbed is what enters a layer:

    feature   what a kept feature wrote to its own layer is taken out
    encoder   the direction that a kept feature reads, so much that its pre-activation rises by a tenth
    random    a random direction, as long as what the feature wrote

Letters: B perturbations of a pass, P positions, D d_model, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.validation import Curve
from circuit_tracer.interventions.features.iterative import IterativePass
from circuit_tracer.interventions.features.passes import Pass
from circuit_tracer.interventions.validation.bench import Bench
from circuit_tracer.models.run import Visit

KINDS = ("feature", "encoder", "random")
PERTURBATIONS = 48  # of each kind, at the kept features of most influence
STEP = 0.1  # of a pre-activation


@dataclass(frozen=True)
class Perturbation:
    """A vector (D,) added to what enters a layer at one position."""

    layer: int
    position: int
    vector: Tensor


def perturbation_curves(graph: Graph, pruned: PruneResult, bench: Bench, seed: int = 0) -> list[Curve]:
    """One curve a kind; empty columns where no kept feature has a layer behind it. None of neurons, whose sum is the model."""
    if bench.model.transcoders.exact:
        return []
    kept = torch.nonzero(pruned.node_mask[graph.nodes.layout.features].cpu()).flatten()
    order = torch.argsort(pruned.influence.cpu()[kept], descending=True, stable=True)[:PERTURBATIONS]
    chosen = graph.selected_features[kept[order]].cpu()
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, list[Perturbation]] = {kind: [] for kind in KINDS}
    for row in chosen.tolist():
        for kind, perturbation in _perturbations(graph, bench, row, generator):
            made[kind].append(perturbation)
    return [_curve(kind, made[kind], bench) for kind in KINDS]


def _perturbations(
    graph: Graph, bench: Bench, row: int, generator: torch.Generator
) -> Iterator[tuple[str, Perturbation]]:
    """Those of one active feature, by kind; none that no layer would see."""
    layer, position, index = graph.active_features[row].tolist()
    value = float(graph.activation_values[row])
    transcoders, network, dtype = bench.model.transcoders, bench.network, bench.parts.compute_dtype
    place, one = torch.tensor([position], device=bench.parts.device), torch.tensor([index])
    own = transcoders.decoder_rows(layer, one, layer).to(bench.parts.device, dtype)
    written = network.write_at(layer, own * value, place)[0]
    if layer + 1 < bench.n_layers:
        yield "feature", Perturbation(layer + 1, position, -written)
        noise = torch.randn(written.shape, generator=generator, dtype=torch.float64).to(written)
        yield "random", Perturbation(layer + 1, position, noise * (written.norm() / noise.norm()))
    if layer > 0:
        rows, _ = transcoders.reads(layer, one, place, partial(network.transcoder_input, layer))
        read = network.read_adjoint(layer, rows.to(bench.parts.device, dtype), place)[0]
        yield "encoder", Perturbation(layer, position, read * (STEP * abs(value) / read.square().sum()))


def _curve(kind: str, perturbations: list[Perturbation], bench: Bench) -> Curve:
    """Sums over perturbations, by layers passed."""
    sums = torch.zeros(bench.n_layers, 3, dtype=torch.float64)  # count, cosine of the stream, of MLP outputs
    squares = torch.zeros(bench.n_layers, 4, dtype=torch.float64)  # error and size, of the stream and of MLP outputs
    for start in range(0, len(perturbations), bench.batch_size):
        batch = perturbations[start : start + bench.batch_size]
        real, made = (_spread(batch, bench, iterative) for iterative in (False, True))
        for number, each in enumerate(batch):
            for passed in range(1, bench.n_layers - each.layer + 1):
                layer = each.layer + passed - 1
                stream = _compare(real.stream[layer][number], made.stream[layer][number])
                mlp = _compare(real.mlp[layer][number], made.mlp[layer][number])
                sums[passed - 1] += torch.tensor([1, stream[0], mlp[0]])
                squares[passed - 1] += torch.tensor([*stream[1:], *mlp[1:]])
    reached = int((sums[:, 0] > 0).sum())
    count, squares = sums[:reached, 0], squares[:reached]
    return Curve(
        kind,
        count=[int(each) for each in count.tolist()],
        cosine=(sums[:reached, 1] / count).tolist(),
        nmse=_ratio(squares[:, 0], squares[:, 1]),
        mlp_cosine=(sums[:reached, 2] / count).tolist(),
        mlp_nmse=_ratio(squares[:, 2], squares[:, 3]),
    )


@dataclass(frozen=True)
class _Spread:
    """Changes (B, P, D) by layer: of the residual stream behind it, and of its MLP output."""

    stream: list[Tensor]
    mlp: list[Tensor]


def _spread(batch: Sequence[Perturbation], bench: Bench, iterative: bool) -> _Spread:
    copies, n_pos = len(batch) + 1, bench.n_pos
    freeze = bench.freeze(range(bench.n_layers) if iterative else [], attention=True, norms=False)
    left_out = [copy * n_pos + position for copy in range(copies) for position in bench.clean.left_out]
    changes = (
        _RecordingIterative(bench.model, {}, freeze, None, left_out, bench.clean.active)
        if iterative
        else _Recording(bench.model, {}, freeze, None, left_out)
    )
    streams: list[Tensor] = []
    changes.run(_perturbed(batch, bench, streams))(bench.clean.ids, copies=copies)
    outputs = [changes.written[layer].unflatten(0, (copies, n_pos)) for layer in range(bench.n_layers)]
    return _Spread([each[1:] - each[:1] for each in streams[1:]], [each[1:] - each[:1] for each in outputs])


class _Recording(Pass):
    """Keeps what every layer writes (B * P, D)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: dict[int, Tensor] = {}

    def write(self, layer: int, y_PD: Tensor) -> Tensor | None:
        """As the pass does."""
        replacement = super().write(layer, y_PD)
        self.written[layer] = y_PD if replacement is None else replacement
        return replacement


class _RecordingIterative(_Recording, IterativePass):
    """The same of the dictionary's network."""


def _perturbed(batch: Sequence[Perturbation], bench: Bench, streams: list[Tensor]) -> dict[str, Visit]:
    """Sequence k + 1 of a pass is perturbed as the k-th says; `streams` gets what enters every layer, and what the last one
    hands on, (B + 1, P, D).
    """
    dtype = bench.parts.compute_dtype

    def enter(layer: int, resid_BPD: Tensor) -> Tensor:
        resid_BPD = resid_BPD.clone()
        for number, each in enumerate(batch, start=1):
            if each.layer == layer:
                resid_BPD[number, each.position] += each.vector.to(resid_BPD)
        streams.append(resid_BPD.to(dtype))
        return resid_BPD

    def leave(layer: int, resid_BPD: Tensor) -> None:
        if layer == bench.n_layers - 1:
            streams.append(resid_BPD.to(dtype))

    return {"hook_resid_pre": enter, "hook_resid_post": leave}


def _compare(real: Tensor, made: Tensor) -> tuple[float, float, float]:
    """(cosine, squared error, squared size) of two changes (P, D)."""
    real, made = real.double(), made.double()
    norms = float(real.norm() * made.norm())
    cosine = float((real * made).sum()) / norms if norms else 0.0
    return cosine, float((real - made).square().sum()), float(real.square().sum())


def _ratio(error: Tensor, size: Tensor) -> list[float | None]:
    return [e / s if s else None for e, s in zip(error.tolist(), size.tolist(), strict=True)]
