"""Taking things out of a prompt: what features, errors and tokens wrote on the clean run is subtracted where they wrote it.

Heads may be held meanwhile, so that nothing of it comes through them.
Many experiments share a pass; each pass carries one copy of the prompt with nothing taken out, against which changes are
measured, so that rounding which both share drops out.
Letters: B experiments, P positions, D d_model, N features read, K targets, n sources, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.attribution.belonging import require_attention_as_it_is
from circuit_tracer.attribution.prompt import EncodedPrompt, LinearPrompt, linearise
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.passes import Freeze, Pass
from circuit_tracer.interventions.heads.visits import holding_heads
from circuit_tracer.interventions.validation.target_reads import Seen, TargetReads
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.run import Visit, in_turn
from circuit_tracer.progress import told

WINDOW = 3  # layers whose MLPs are held in the condition "window": the source's own and the next two, as in the paper


class Condition(NamedTuple):
    """What may react. held: layers whose MLPs write what they wrote, minus what was taken out; the others are real."""

    name: str
    held: Literal["all", "window", "none"]
    freeze_attention: bool
    freeze_norms: bool

    def layers(self, first: int, n_layers: int) -> range:
        """The held layers, for sources whose first layer is `first` (-1: below layer 0)."""
        start = max(first, 0)
        return {"all": range(n_layers), "window": range(start, min(start + WINDOW, n_layers)), "none": range(0)}[
            self.held
        ]


@dataclass(frozen=True)
class Sources:
    """What one experiment takes out. Features: layer, position, index, value (n,); errors and tokens: where.

    held: (L, H) heads that go on to give what they gave, whatever is taken out; None: none.
    """

    layer: Tensor
    position: Tensor
    index: Tensor
    value: Tensor
    errors: tuple[tuple[int, int], ...] = ()
    tokens: tuple[int, ...] = ()
    held: Tensor | None = None

    @classmethod
    def of_nodes(cls, graph: Graph, nodes: Tensor, held: Tensor | None = None) -> Sources:
        """Features, errors and tokens of a graph, by number."""
        layout, nodes = graph.nodes.layout, nodes.cpu()
        chosen = graph.selected_features[nodes[nodes < layout.n_features]].cpu()
        rows, n_pos = graph.active_features[chosen].long().cpu(), graph.n_pos
        errors = nodes[(nodes >= layout.error_start) & (nodes < layout.token_start)] - layout.error_start
        tokens = nodes[(nodes >= layout.token_start) & (nodes < layout.target_start)] - layout.token_start
        return cls(
            rows[:, 0],
            rows[:, 1],
            rows[:, 2],
            graph.activation_values[chosen].cpu(),
            tuple((place // n_pos, place % n_pos) for place in errors.tolist()),
            tuple(tokens.tolist()),
            held,
        )

    @property
    def first_layer(self) -> int:
        """The first layer that writes less; -1 for tokens."""
        layers = [*self.layer.tolist(), *(layer for layer, _ in self.errors), *(-1 for _ in self.tokens)]
        return min(layers, default=0)


class Readings(NamedTuple):
    """Changes against the clean copy. features: (B, N) of pre-activations; targets: (B, K) of demeaned logits before a
    softcap, and of what other targets read; final: (B, P, D) output of the final norm.
    """

    features: Tensor
    targets: Tensor
    final: Tensor


# Called with the numbers of the experiments that a pass carries behind its clean copy; gives visits by site.
Look = Callable[[Sequence[int]], Mapping[str, Visit]]


class Bench:
    """One prompt of a graph, ready for experiments: `watched` feature nodes and `targets` (rows of its target table) are
    read.
    """

    def __init__(self, model: Traceable, graph: Graph, watched: Tensor, targets: Tensor, batch_size: int) -> None:
        require_attention_as_it_is(graph, "validation")
        self.model, self.graph, self.clean = model, graph, CleanRun(model, graph)
        self.parts, self.network, self.batch_size = model.parts, self.clean.network, batch_size
        rows = graph.active_features[graph.selected_features[watched]].long().cpu()
        self.watched = rows
        self._encoders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for layer in rows[:, 0].unique().tolist():
            place = torch.nonzero(rows[:, 0] == layer).flatten()
            x_PD = partial(self.network.transcoder_input, layer)
            vectors, _ = model.transcoders.reads(layer, rows[place, 2], rows[place, 1], x_PD)
            device, dtype = self.parts.device, self.parts.compute_dtype
            self._encoders[layer] = (place, rows[place, 1].to(device), vectors.to(device, dtype))
        self.targets = TargetReads(graph, model, self.network, targets)

    @property
    def n_pos(self) -> int:
        """P."""
        return self.clean.n_pos

    @property
    def n_layers(self) -> int:
        """L."""
        return self.parts.config.n_layers

    @cached_property
    def linear(self) -> LinearPrompt:
        """The prompt made linear: its errors, and sources."""
        keep = torch.ones(self.n_pos, dtype=torch.bool)
        keep[self.clean.left_out] = False
        return linearise(EncodedPrompt(self.network, self.clean.active.to("cpu"), keep), self.model.transcoders, False)

    def run(self, experiments: Sequence[Sources], condition: Condition, look: Look | None = None) -> Readings:
        """Take out the sources of each experiment by itself; in the order given. look: visits the passes too."""
        found: list[Readings | None] = [None] * len(experiments)
        by_range: dict[range, list[int]] = {}
        for number, sources in enumerate(experiments):
            by_range.setdefault(condition.layers(sources.first_layer, self.n_layers), []).append(number)
        with told() as progress:
            for layers, numbers in by_range.items():
                freeze = self.freeze(layers, condition.freeze_attention, condition.freeze_norms)
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    seeing = {} if look is None else look(batch)
                    readings = self._pass([experiments[number] for number in batch], freeze, seeing)
                    for place, number in enumerate(batch):
                        found[number] = Readings(*(column[place : place + 1] for column in readings))
                    progress("taking nodes out", sum(each is not None for each in found), len(found))
        return Readings(*(torch.cat(column) for column in zip(*(each for each in found if each), strict=True)))

    def freeze(self, layers: Sequence[int], attention: bool, norms: bool) -> Freeze:
        """What a pass holds still."""
        ids, network = self.clean.ids, self.network
        return Freeze(self.model, ids, layers, attention=attention, norms=norms, network=network)

    def log_probabilities(self, final_nD: Tensor) -> Tensor:
        """(n, V) of the next token."""
        return torch.log_softmax(logits_at(self.parts, final_nD), dim=-1)

    def first_target(self, readings: Readings) -> tuple[float, list[float]]:
        """On the clean prompt, and (B,) in the readings: the probability of the first target, if it is a token, else its
        value.
        """
        token = self.targets.first_token
        if token is None:
            clean = float(self.targets.clean[0])
            return clean, (clean + readings.targets[:, 0].double()).tolist()
        index, position = token
        final = torch.cat([self.clean.final[None, position], readings.final[:, position]])
        first, *others = self.log_probabilities(final)[:, index].exp().tolist()
        return first, others

    def _pass(self, experiments: Sequence[Sources], freeze: Freeze, seeing: Mapping[str, Visit]) -> Readings:
        copies = len(experiments) + 1
        reader = _Reader(self, copies)
        changes = Pass(self.model, {}, freeze, reader, [])
        for copy, sources in enumerate(experiments, start=1):
            self._take_out(changes, sources, copy, copies)
        tokens = [(copy, place) for copy, each in enumerate(experiments, start=1) for place in each.tokens]
        visits = {**self._without_tokens(tokens), **self._holding(experiments)}
        seen: Seen = {}
        for each in (seeing, self.targets.visits(seen)):
            visits |= {site: in_turn(visits.get(site), visit) for site, visit in each.items()}
        final = changes.run(visits)(self.clean.ids, copies=copies).final
        moved = {place: found[1:] - found[:1] for place, found in seen.items()}
        return Readings(reader.result(), self.targets.values(final[1:] - final[:1], moved), final[1:])

    def _take_out(self, changes: Pass, sources: Sources, copy: int, copies: int) -> None:
        """Subtract, at the output hooks of the pass, what the sources wrote there; in held layers only, if any are held."""
        device, dtype, first_row = self.parts.device, self.parts.compute_dtype, copy * self.n_pos
        like = torch.zeros(copies * self.n_pos, self.parts.config.d_model, device=device, dtype=dtype)
        for layer in sources.layer.unique().tolist():
            here = sources.layer == layer
            row, change = (sources.position[here] + first_row).to(device), -sources.value[here].to(device, dtype)
            changes.add_writes(layer, like, row, sources.index[here].to(device), change)
        for layer, position in sources.errors:
            if not changes.held or layer in changes.held:
                delta = changes.delta.setdefault(layer, torch.zeros_like(like))
                delta[first_row + position] -= self.linear.error[layer, position]

    def _holding(self, experiments: Sequence[Sources]) -> dict[str, Visit]:
        """Held heads give what they give in copy 0."""
        none = torch.zeros(self.n_layers, self.parts.config.n_heads, dtype=torch.bool)
        held = torch.stack([none, *(none if each.held is None else each.held for each in experiments)])
        return {"attn.hook_z": holding_heads(held)} if held.any() else {}

    def _without_tokens(self, places: list[tuple[int, int]]) -> dict[str, Visit]:
        """Embeddings of tokens (copy, position) are missing; their positions' own vectors stay."""

        def drop(layer: int, resid_BPD: Tensor) -> Tensor | None:
            if layer > 0:
                return None
            left = resid_BPD.clone()
            for copy, position in places:
                left[copy, position] -= self.network.captured.embedding[position].to(left)
            return left

        return {"hook_resid_pre": drop} if places else {}


class _Reader:
    """Observer of a pass: changes of the watched features' pre-activations against copy 0."""

    def __init__(self, bench: Bench, copies: int) -> None:
        self.bench, self.copies = bench, copies
        self.change = torch.zeros(copies - 1, len(bench.watched), dtype=bench.parts.compute_dtype)

    def add_attention(self, layer: int, pre_PF: Tensor) -> None:
        """Features of attention are none of those watched."""

    def add(self, layer: int, x_PD: Tensor) -> None:
        """Take the inputs (copies * P, D) of the next layer."""
        if layer in self.bench._encoders:
            place, position, vectors = self.bench._encoders[layer]
            x_BPD = x_PD.unflatten(0, (self.copies, self.bench.n_pos))
            moved = (x_BPD[1:] - x_BPD[:1])[:, position]
            self.change[:, place] = (moved * vectors).sum(-1).cpu()

    def result(self) -> Tensor:
        """(B, N)."""
        return self.change
