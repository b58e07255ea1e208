"""The clean run of a prompt: what every intervention on it is compared with.

Letters: L layers, P positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.attribution.belonging import require_traced_with
from circuit_tracer.attribution.fit import warn_of_misfit
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.normalised_error import FEW
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.interventions.features.attention_changes import pre_activations
from circuit_tracer.interventions.features.passes import clean_network
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.transcoders.active import ActiveFeatures

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

AGREEMENT = 1e-3  # relative; float32 in another order of addition differs by 1e-6
COARSE_AGREEMENT = 0.05  # for bfloat16 and float16
FLIPPED = 0.02  # share of features that may fall on the other side of their threshold by rounding


class CleanRun:
    """One pass over a prompt, text, ids or a graph, whose prompt it then is.

    Args:
        model: The replacement model.
        prompt: Text, token ids (P,), or a graph.
        patterns: False when attention will not be frozen, so that a prompt whose attention patterns do not fit into memory
            can be run; ResourceError otherwise.

    Raises:
        CompatibilityError: For a graph that was not traced on this model with these transcoders: sizes or fingerprints
            differ, or the activations that it holds are not those found here.
    """

    @plain_torch()
    def __init__(self, model: Traceable, prompt: Prompt | Graph, patterns: bool = True) -> None:
        self.model = model
        if isinstance(prompt, Graph):
            require_traced_with(prompt, model)
            self.ids = prompt.input_tokens.detach().cpu().long()
            self.left_out = prompt.provenance.get("settings", {}).get("zero_positions")
        else:
            self.ids, self.left_out = model.ensure_tokenized(prompt), None
        if self.left_out is None:
            self.left_out = model.left_out(self.ids)
        self.network = clean_network(model, self.ids, patterns)
        self._chosen: ActiveFeatures | None = None
        if isinstance(prompt, Graph):
            self._check_activations(prompt)
            if model.transcoders.exact:
                of_mlps = prompt.active_features[:, 2] < model.transcoders.d_transcoder
                rows = prompt.active_features[of_mlps].detach().to(model.parts.device).long()
                layer, position, index = rows.T.contiguous()
                value = prompt.activation_values[of_mlps].detach().to(model.parts.device)
                self._chosen = ActiveFeatures(layer, position, index, value)

    @property
    def n_pos(self) -> int:
        """P."""
        return len(self.ids)

    @property
    def final(self) -> Tensor:
        """Output of the final norm, (P, D)."""
        return self.network.captured.final

    @cached_property
    @plain_torch()
    def active(self) -> ActiveFeatures:
        """All active features of MLPs, found when first asked for; none at the left-out positions. Of neurons, where all are
        active, those that a graph names.
        """
        if self._chosen is not None:
            return self._chosen
        transcoders, layers = self.model.transcoders, []
        dropped = torch.tensor(self.left_out, dtype=torch.int64, device=self.model.parts.device)
        for layer in range(transcoders.n_layers):
            position, index, value = transcoders.encode_positions(layer, self.network.transcoder_input(layer))
            keep = ~torch.isin(position, dropped)
            layers.append((position[keep], index[keep], value[keep]))
        return ActiveFeatures.from_layers(layers)

    @plain_torch()
    def activations(self, layer: int, position: Tensor, index: Tensor) -> Tensor:
        """Activations (n,) of chosen features; see `activations_of` for what is read. Zero at the left-out positions."""
        device, first = self.model.parts.device, self.model.transcoders.d_transcoder
        position, index = position.to(device), index.to(device)
        behind = index >= first
        found = torch.zeros(len(index), dtype=self.network.parts.compute_dtype, device=device)
        if self.model.attention is not None and bool(behind.any()):
            found[behind] = self.attention_activations[layer][position[behind], index[behind] - first].to(found)
        if not bool(behind.all()):
            x_PD = self.network.transcoder_input(layer)
            found[~behind] = activations_of(self.model.transcoders, layer, x_PD, position[~behind], index[~behind])
        return torch.where(torch.isin(position, torch.tensor(self.left_out, device=device)), 0, found)

    @cached_property
    def attention(self) -> FrozenAttention:
        """The dictionary of attention outputs on this prompt; the model has one."""
        assert self.model.attention is not None
        return FrozenAttention(self.network, self.model.attention)

    @cached_property
    @plain_torch()
    def attention_activations(self) -> dict[int, Tensor]:
        """(P, F) of the features of attention, by layer."""
        found, dictionary = {}, self.attention.dictionary
        for layer in dictionary.layers:
            pre = pre_activations(dictionary, layer, self.attention.true_input(layer), self.n_pos, self.attention)
            found[layer] = dictionary.apply_activation_function(layer, pre)
        return found

    @plain_torch()
    def look_at_fit(self, layers: Iterable[int]) -> None:
        """Warn, once a model, of layers whose autoencoders do not fit what they read on this prompt."""
        transcoders = self.model.transcoders
        looked: set[int] = self.model.__dict__.setdefault("_fit_looked_at", set())
        kept = [position for position in range(self.n_pos) if position not in set(self.left_out)]
        new = sorted(set(layers) - looked) if transcoders.is_autoencoder and len(kept) >= FEW else []
        looked.update(new)
        if new:
            warn_of_misfit(transcoders, {layer: self.network.transcoder_input(layer)[kept] for layer in new})

    def _check_activations(self, graph: Graph) -> None:
        kept = graph.active_features[graph.selected_features].cpu().long()
        expected = graph.activation_values[graph.selected_features].cpu().double()
        found = torch.zeros_like(expected)
        for layer in kept[:, 0].unique().tolist():
            here = kept[:, 0] == layer
            found[here] = self.activations(layer, kept[here, 1], kept[here, 2]).cpu().double()
        coarse = {graph.cfg.dtype, self.model.parts.config.dtype} & {"bfloat16", "float16"}
        allowed = (COARSE_AGREEMENT if coarse else AGREEMENT) * expected.abs().max() if len(expected) else 0.0
        off = (found - expected).abs() > allowed
        share = float(off.double().mean()) if len(expected) else 0.0
        if share > FLIPPED:
            worst = int((found - expected).abs().argmax())
            layer, position, index = kept[worst].tolist()
            raise CompatibilityError(
                f"the graph was made with another model or other transcoders: {int(off.sum())} of its {len(off)} features "
                f"have other activations here, such as layer {layer}, position {position}, feature {index}: "
                f"{float(expected[worst]):.4g} in the graph, {float(found[worst]):.4g} here. Load those it was traced with."
            )
