"""One forward pass with features set to values, by circuit-tracer's semantics.

A feature that is set changes by delta = value - its activation; delta times its decoder rows is added at the output hooks of
the layers it writes to. Activations are those of the pass as it goes, so that effects of effects count. With layers held
(`constrained_layers`) they are those of the clean pass instead: the MLP outputs of the held layers stay as they were, apart
from the deltas (and from what a skip connection passes on), and nothing is written outside of them.

Letters: L layers, P positions, D d_model, T layers written to, n features set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.interventions.activations import Recorder, activations_of
from circuit_tracer.interventions.points import hooked
from circuit_tracer.interventions.settings import LayerSettings
from circuit_tracer.models.attention import AttentionTape, attention_tape
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


class Freeze:
    """What stays as it was on the clean prompt: attention patterns; with layers held, their MLP outputs; with all layers
    held, norm scales too, which makes the network the linear one of the attribution graph.
    """

    def __init__(self, model: Traceable, ids: Tensor, layers: Iterable[int] | None) -> None:
        self.model = model
        self.layers = frozenset(layers or ())
        n_layers = model.parts.config.n_layers
        if self.layers and not (min(self.layers) >= 0 and max(self.layers) < n_layers):
            raise InputError(
                f"constrained_layers reach from {min(self.layers)} to {max(self.layers)}; layers: 0 to {n_layers - 1}"
            )
        self.network = FrozenNetwork(
            model.parts,
            capture(model.parts, ids),
            model.transcoders.feature_input_hook,
            model.transcoders.feature_output_hook,
        )
        self.holds_scales = len(self.layers) == n_layers

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, passes of `model.parts.model` over the same tokens are frozen."""
        with patched(self.model, {}, self):
            yield

    def output(self, layer: int, x_PD: Tensor) -> Tensor:
        """What a held layer writes (P, D) when its transcoder reads x (P, D)."""
        clean = self.network.transcoder_output(layer)
        skip = self.model.transcoders.skip_matrix(layer)
        return clean if skip is None else clean + (x_PD - self.network.transcoder_input(layer)) @ skip.to(x_PD)


@contextmanager
def patched(
    model: Traceable,
    settings: dict[int, LayerSettings],
    freeze: Freeze | None = None,
    recorder: Recorder | None = None,
    zero_positions: list[int] | None = None,
) -> Iterator[None]:
    """Inside the block, passes of the model have features set; `recorder` collects activations. At `zero_positions` features
    count as inactive, as in circuit-tracer.
    """
    changes = _Pass(model, settings, freeze, recorder, zero_positions or [])
    with ExitStack() as stack:
        scales = None
        if freeze is not None:
            captured = freeze.network.captured
            stack.enter_context(attention_tape(AttentionTape(dict(enumerate(captured.patterns)), replay=True)))
            scales = captured if freeze.holds_scales else None
        hooks = model.transcoders.feature_input_hook, model.transcoders.feature_output_hook
        stack.enter_context(hooked(model.parts, *hooks, changes.read, changes.write, scales))
        yield


class _Pass:
    """What the hooks of a pass do and remember."""

    def __init__(
        self,
        model: Traceable,
        settings: dict[int, LayerSettings],
        freeze: Freeze | None,
        recorder: Recorder | None,
        zero_positions: list[int],
    ) -> None:
        self.transcoders, self.settings, self.freeze, self.recorder = model.transcoders, settings, freeze, recorder
        self.held = freeze.layers if freeze is not None else frozenset[int]()
        self.zero_positions = torch.tensor(zero_positions, dtype=torch.int64, device=model.parts.device)
        self.input: dict[int, Tensor] = {}  # (P, D) of held layers, on the way from the input hook to the output hook
        self.delta: dict[int, Tensor] = {}  # (P, D) still to be added at layers ahead

    def read(self, layer: int, x_PD: Tensor) -> None:
        """Record activations; turn what is set here into changes of what this layer and later ones write."""
        if self.recorder is not None:
            self.recorder.add(layer, x_PD)
        if layer in self.held:
            self.input[layer] = x_PD
        if layer in self.settings:
            self._change(layer, x_PD, self.settings[layer])

    def write(self, layer: int, y_PD: Tensor) -> Tensor | None:
        """The layer's output with what is held and what was changed; None if neither."""
        replacement = None
        if self.freeze is not None and layer in self.held:
            replacement = self.freeze.output(layer, self.input.pop(layer))
        delta = self.delta.pop(layer, None)
        if delta is None:
            return replacement
        return (y_PD if replacement is None else replacement) + delta

    def _change(self, layer: int, x_PD: Tensor, wanted: LayerSettings) -> None:
        if self.freeze is not None and self.held:
            x_PD = self.freeze.network.transcoder_input(layer)
        current = activations_of(self.transcoders, layer, x_PD, wanted.position, wanted.index)
        current = torch.where(torch.isin(wanted.position, self.zero_positions), 0, current)
        change = wanted.value - current
        unique, inverse = torch.unique(wanted.index, return_inverse=True)
        rows_nTD = self.transcoders.decoder_rows(layer, unique).to(x_PD)
        for slot, target in enumerate(self.transcoders.target_layers(layer)):
            if self.held and target not in self.held:
                continue
            delta = self.delta.setdefault(target, torch.zeros_like(x_PD))
            delta.index_add_(0, wanted.position, rows_nTD[inverse, slot] * change[:, None])
