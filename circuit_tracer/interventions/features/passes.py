"""One forward pass with features set to values, by circuit-tracer's semantics.

A feature that is set changes by delta = value - its activation; delta times its decoder rows is added at the output hooks of
the layers it writes to. Activations are those of the pass as it goes, so that effects of effects count. With layers held
(`constrained_layers`) they are those of the clean pass instead: the MLP outputs of the held layers stay as they were, apart
from the deltas (and from what a skip connection passes on), and nothing is written outside of them.

Of an autoencoder, which reads and writes at one place, that is the difference of its reconstructions, added there; its error
stays. In the residual stream there is nothing to hold: all that a layer gives goes through it.

Letters: L layers, P positions, D d_model, T layers written to, n features set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.memory import free_bytes
from circuit_tracer.errors import InputError, NumericalError, ResourceError
from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.interventions.features.attention_changes import AttentionChanges
from circuit_tracer.interventions.features.settings import LayerSettings, split_settings
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.run import ModelRun, Visit, in_rows, in_turn, live_scales
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.sizes import as_size

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

SMALL = 2**26  # bytes of attention patterns that are kept whatever seems free, which in a container is a cautious guess
# Where an autoencoder's place is read by the MLP alone, while the stream goes on: where a change joins the stream again.
GOES_ON = {"hook_resid_mid": "hook_resid_post"}
SHARE_FOR_UNNEEDED = 0.25  # of free memory, for attention patterns that nothing is frozen to


class Freeze:
    """What stays as it was on the clean prompt: attention patterns; with layers held, their MLP outputs; with all layers held,
    norm scales too, which makes the network the linear one of the attribution graph.

    Args:
        model: The replacement model.
        ids: (P,) of the prompt.
        layers: Whose MLP outputs are held; None: none.
        attention: Hold attention patterns.
        norms: Whether norm scales are held, None for the rule above.
        network: The clean prompt's, where it is known already.
    """

    def __init__(
        self,
        model: Traceable,
        ids: Tensor,
        layers: Iterable[int] | None,
        *,
        attention: bool = True,
        norms: bool | None = None,
        network: FrozenNetwork | None = None,
    ) -> None:
        self.model, self.attention = model, attention
        self.layers = frozenset(whole(layer, "a constrained layer") for layer in (() if layers is None else layers))
        n_layers = model.parts.config.n_layers
        if self.layers and not (min(self.layers) >= 0 and max(self.layers) < n_layers):
            raise InputError(
                f"constrained_layers reach from {min(self.layers)} to {max(self.layers)}; layers: 0 to {n_layers - 1}"
            )
        self.network = clean_network(model, ids, patterns=attention) if network is None else network
        if self.layers and (place := model.transcoders.feature_output_hook).startswith("hook_resid"):
            raise InputError(
                f"the autoencoders stand in the residual stream ({place}): to hold it in a layer is to hold all that comes "
                "before. Use direct semantics, in which everything reacts (leave constrained_layers out), or autoencoders of "
                "what attention or MLPs add to it"
            )
        if attention and not self.network.captured.patterns:
            raise InputError(
                "the clean run holds no attention patterns, which freezing attention needs: they did not fit into memory. Let "
                "attention react (freeze_attention=False), or make the run again as CleanRun(model, prompt)"
            )
        self.holds_scales = len(self.layers) == n_layers if norms is None else norms

    def applied(self) -> AbstractContextManager[None]:
        """Inside the block, passes of `model.parts.model` over the same tokens are frozen."""
        return Pass(self.model, {}, self).run().active()

    def run(self, model_visits: Mapping[str, Visit]) -> ModelRun:
        """A run in which this is held."""
        captured = self.network.captured
        return ModelRun(
            self.model.parts,
            model_visits,
            norms=captured.scales if self.holds_scales else live_scales,
            tape=captured.replayed() if self.attention else None,
        )

    def input(self, layer: int) -> Tensor:
        """What the transcoder of a layer reads (P, D) on the clean prompt."""
        return self.network.transcoder_input(layer)

    def output(self, layer: int, x_PD: Tensor) -> Tensor:
        """What a held layer writes (P, D), or (B * P, D), when its transcoder reads x of the same shape."""
        copies = len(x_PD) // self.network.captured.n_pos
        clean = self.network.transcoder_output(layer).repeat(copies, 1)
        skip = self.model.transcoders.skip_matrix(layer)
        return clean if skip is None else clean + (x_PD - self.input(layer).repeat(copies, 1)) @ skip.to(x_PD)


class Observer(Protocol):
    """Something that looks at what the transcoders read in a pass."""

    def add(self, layer: int, x_PD: Tensor) -> None:
        """Take the inputs (P, D), or (B * P, D), of the next layer."""

    def add_attention(self, layer: int, pre_PF: Tensor) -> None:
        """Take pre-activations (P, F), or (B * P, F), of the features of attention of a layer; before its inputs."""


@plain_torch()
def clean_network(model: Traceable, ids: Tensor, patterns: bool = True) -> FrozenNetwork:
    """One pass of the model over ids (P,), as the frozen network.

    patterns: whether attention patterns are needed. Otherwise they are kept only while they are small, for then the run adds
    up as a live pass does, to the bit. Raises ResourceError when they are needed and do not fit into memory.
    """
    parts, hooks = model.parts, (model.transcoders.feature_input_hook, model.transcoders.feature_output_hook)
    config, free = parts.config, free_bytes(parts.device)
    size = config.n_layers * config.n_heads * len(ids) ** 2 * parts.compute_dtype.itemsize
    if patterns and size > max(SMALL, free):
        raise ResourceError(
            f"attention patterns of this prompt of {len(ids):,} tokens take {as_size(size)} ({config.n_layers} layers of "
            f"{config.n_heads} heads); {as_size(free)} are free on {parts.device}. Shorten the prompt, use a device with more "
            "memory, or let attention react (freeze_attention=False), which needs no patterns"
        )
    keep = patterns or size <= max(SMALL, SHARE_FOR_UNNEEDED * free)
    places = hooks[:1] if model.transcoders.is_autoencoder else ()
    return FrozenNetwork(parts, capture(parts, ids, keep_patterns=keep, places=places), *hooks)


def require_finite(final: Tensor) -> Tensor:
    """What came out of a changed pass; NumericalError if the change was more than the model's numbers can hold."""
    if not torch.isfinite(final).all():
        raise NumericalError(
            "after this change the model's activations are no longer finite; set features to smaller values, or load the "
            "model in a dtype of wider range"
        )
    return final


class Pass:
    """What a pass does and remembers at the transcoders' places, for direct and constrained semantics.

    `observer` sees what the transcoders read. At `zero_positions` (rows of the pass) features count as inactive, as in
    circuit-tracer.
    """

    def __init__(
        self,
        model: Traceable,
        settings: dict[int, LayerSettings],
        freeze: Freeze | None = None,
        observer: Observer | None = None,
        zero_positions: Sequence[int] = (),
    ) -> None:
        self.parts = model.parts
        self.transcoders, self.freeze, self.observer = model.transcoders, freeze, observer
        self.settings, of_attention = split_settings(settings, self.transcoders.d_transcoder)
        self.held = freeze.layers if freeze is not None else frozenset[int]()
        self.zero_positions = sent(torch.tensor(zero_positions, dtype=torch.int64), model.parts.device)
        self.input: dict[int, Tensor] = {}  # (P, D) of held layers, on the way from the input hook to the output hook
        self.delta: dict[int, Tensor] = {}  # (P, D) still to be added at layers ahead
        self.going_on: dict[int, Tensor] = {}  # (P, D) that was added where the MLP reads, on its way past the MLP
        self.attention: AttentionChanges | None = None
        if model.attention is not None:
            self.attention = AttentionChanges(
                model.parts,
                model.attention,
                of_attention,
                self.held,
                None if freeze is None else FrozenAttention(freeze.network, model.attention),
                freeze is not None and freeze.attention,
                None if observer is None else observer.add_attention,
                self.zero_positions,
            )

    def visits(self) -> dict[str, Visit]:
        """What it does, by site."""
        read, write = in_rows(self.parts, self.read), in_rows(self.parts, self.write)
        if not self.transcoders.is_autoencoder:
            own = {} if self.attention is None else self.attention.visits()
            return {**own, self.transcoders.feature_input_hook: read, self.transcoders.feature_output_hook: write}
        place = self.transcoders.feature_input_hook
        both = {place: in_turn(read, write)}
        return both if place not in GOES_ON else {**both, GOES_ON[place]: in_rows(self.parts, self.go_on)}

    def run(self, visits: Mapping[str, Visit] | None = None) -> ModelRun:
        """The run of the model that this is, with `visits` by site, which come second."""
        own = self.visits()
        every = {**own, **{site: in_turn(own.get(site), visit) for site, visit in (visits or {}).items()}}
        return ModelRun(self.parts, every) if self.freeze is None else self.freeze.run(every)

    def read(self, layer: int, x_PD: Tensor) -> None:
        """Observe; turn what is set here into changes of what this layer and later ones write."""
        if self.observer is not None:
            self.observer.add(layer, x_PD)
        if layer in self.held:
            self.input[layer] = x_PD
        self.change(layer, x_PD)

    def write(self, layer: int, y_PD: Tensor) -> Tensor | None:
        """The layer's output with what is held and what was changed; None if neither."""
        replacement = None
        if self.freeze is not None and layer in self.held:
            replacement = self.freeze.output(layer, self.input.pop(layer))
        delta = self.delta.pop(layer, None)
        if delta is None:
            return replacement
        if self.transcoders.feature_output_hook in GOES_ON:
            self.going_on[layer] = delta
        return (y_PD if replacement is None else replacement) + delta

    def go_on(self, layer: int, resid_PD: Tensor) -> Tensor | None:
        """The stream behind a layer, with what was changed in it where the MLP reads."""
        delta = self.going_on.pop(layer, None)
        return None if delta is None else resid_PD + delta

    def change(self, layer: int, x_PD: Tensor) -> None:
        """Collect what the features of this layer write more, or less, than they would."""
        wanted = self.settings.get(layer)
        if wanted is None:
            return
        source, row = x_PD, wanted.position
        if self.freeze is not None and self.held:
            source, row = self.freeze.input(layer), row % self.freeze.network.captured.n_pos
        current = activations_of(self.transcoders, layer, source, row, wanted.index)
        current = torch.where(torch.isin(wanted.position, self.zero_positions), 0, current)
        self.add_writes(layer, x_PD, wanted.position, wanted.index, wanted.target(current) - current)

    def add_writes(self, layer: int, x_PD: Tensor, position: Tensor, index: Tensor, change: Tensor) -> None:
        """Changes (n,) of activations, times decoder rows, go to the layers these features write to, held ones if any."""
        unique, inverse = torch.unique(index, return_inverse=True)
        rows_nTD = self.transcoders.decoder_rows(layer, unique).to(x_PD)
        inverse = sent(inverse, x_PD.device)
        for slot, target in enumerate(self.transcoders.target_layers(layer)):
            if self.held and target not in self.held:
                continue
            delta = self.delta.setdefault(target, torch.zeros_like(x_PD))
            delta.index_add_(0, position, rows_nTD[inverse, slot] * change[:, None])
