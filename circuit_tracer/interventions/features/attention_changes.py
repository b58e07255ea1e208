"""Features of attention in a pass: what a dictionary of attention outputs reads there, and what is changed of what it writes.

A feature that is set changes by delta = value - its activation; delta times its decoder row is added at the dictionary's output
hook. In held layers attention outputs stay as they were on the clean prompt, apart from these changes, and activations are
those of the clean prompt: with all layers held, the effects are edges of the graph.

Letters: B sequences, P positions, V and W widths at the dictionary's input and output hook, F features a layer, n = B * P rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.interventions.features.settings import LayerSettings
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import Visit, in_rows
from circuit_tracer.transcoders.lorsa import Lorsa
from circuit_tracer.transcoders.transcoder_set import TranscoderSet


def pre_activations(
    dictionary: TranscoderSet, layer: int, x_nV: Tensor, n_pos: int, frozen: FrozenAttention | None
) -> Tensor:
    """(n, F), of sequences of `n_pos` rows each. frozen: whose patterns Lorsa keeps; None: it makes its own."""
    if not isinstance(dictionary, Lorsa):
        return dictionary.encode_layer(x_nV, layer, apply_activation_function=False)
    each = x_nV.split(n_pos)
    patterns = [dictionary.queries_keys(layer).pattern(x) if frozen is None else frozen.pattern(layer) for x in each]
    return torch.cat([dictionary.pre_activations(layer, x, own) for x, own in zip(each, patterns, strict=True)])


class AttentionChanges:
    """What a pass does and remembers at the places of the dictionary.

    settings: features by their index in it. held: layers that are. frozen: of the clean prompt, if anything is held still.
    freezes_patterns: Lorsa's too. observe: called with a layer and its pre-activations. zero_positions: rows where features
    count as inactive.
    """

    def __init__(
        self,
        parts: ModelParts,
        dictionary: TranscoderSet,
        settings: Mapping[int, LayerSettings],
        held: frozenset[int],
        frozen: FrozenAttention | None,
        freezes_patterns: bool,
        observe: Callable[[int, Tensor], None] | None,
        zero_positions: Tensor,
    ) -> None:
        self.parts, self.dictionary, self.settings = parts, dictionary, settings
        self.held, self.frozen, self.freezes_patterns, self.observe = held, frozen, freezes_patterns, observe
        self.zero_positions = zero_positions
        self.x: dict[int, Tensor] = {}  # (n, V) on the way from the input hook to the output hook

    def visits(self) -> dict[str, Visit]:
        """What it does, by site."""
        reads, writes = self.dictionary.feature_input_hook, self.dictionary.feature_output_hook
        if reads == writes:
            return {writes: in_rows(self.parts, self.both)}
        return {reads: in_rows(self.parts, self.read), writes: in_rows(self.parts, self.write)}

    def both(self, layer: int, x_nV: Tensor) -> Tensor | None:
        """Where the dictionary reads and writes at one place."""
        self.read(layer, x_nV)
        return self.write(layer, x_nV)

    def read(self, layer: int, x_nV: Tensor) -> None:
        """Keep what it reads."""
        if layer in self.dictionary.layers:
            self.x[layer] = x_nV

    def write(self, layer: int, y_nW: Tensor) -> Tensor | None:
        """The attention output with what is held and what was changed; None if neither."""
        if layer not in self.dictionary.layers:
            return None
        x, held, replacement = self.x.pop(layer), layer in self.held, None
        if self.observe is not None:
            self.observe(layer, self._pre(layer, x))
        if held and self.frozen is not None:
            clean = self.frozen.true_output(layer)
            replacement = clean.repeat(len(y_nW) // len(clean), 1)
        wanted = self.settings.get(layer)
        if wanted is None:
            return replacement
        row = wanted.position
        if held and self.frozen is not None:
            x = self.frozen.true_input(layer)
            row = row % len(x)
        index = sent(wanted.index, x.device)
        activations = self.dictionary.apply_activation_function(layer, self._pre(layer, x))[row, index]
        current = torch.where(torch.isin(wanted.position, self.zero_positions), 0, activations.to(y_nW))
        unique, inverse = torch.unique(wanted.index, return_inverse=True)
        rows = self.dictionary.decoder_rows(layer, unique, target_layer=layer).to(y_nW)
        rows = rows.index_select(0, sent(inverse, rows.device))
        changed = (y_nW if replacement is None else replacement).clone()
        return changed.index_add_(0, wanted.position, rows * (wanted.target(current) - current)[:, None])

    def _pre(self, layer: int, x_nV: Tensor) -> Tensor:
        n_pos = len(x_nV) if self.frozen is None else self.frozen.network.captured.n_pos
        return pre_activations(self.dictionary, layer, x_nV, n_pos, self.frozen if self.freezes_patterns else None)
