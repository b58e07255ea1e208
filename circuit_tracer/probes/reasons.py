"""Which features stand behind a score at one token.

Of a probe on features: weight times activation, exactly its part of the score. Of one on the residual stream: what each active
feature of the layer before the place writes along the probe there and then, activation times <decoder row, weight>; what
earlier layers wrote is not looked for here: a graph of the probe (`circuit-tracer probe explain`) says all of it. Autoencoders
at the place itself say it of what they rebuild there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.models.run import Place
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Subject

_BEHIND = {
    "hook_resid_post": 0,
    "hook_resid_mid": -1,
    "hook_resid_pre": -1,
}  # layers between a place and the MLP before it


class Reason(NamedTuple):
    """A feature, its activation, and what it adds to the score."""

    layer: int
    feature: int
    activation: float
    part: float


class Reasons:
    """Finds the features behind scores of one probe. place: what it needs of the model besides what the probe reads."""

    def __init__(self, subject: Subject, probe: Probe) -> None:
        self.probe, self.transcoders = probe, subject.transcoders
        self.layer = self._writing_layer(subject)
        self.place: Place | None = None
        if self.layer is not None and self.transcoders is not None:
            self.place = (self.transcoders.feature_input_hook, self.layer)
        self.multiplier = 1.0 if self.place == probe.place else subject.parts.residual_multiplier

    def _writing_layer(self, subject: Subject) -> int | None:
        """The layer whose features write to the stream just before the place, if they write there without a norm between."""
        probe, transcoders = self.probe, subject.transcoders
        if probe.place is None or transcoders is None:
            return None
        if transcoders.is_autoencoder:  # of what it rebuilds of the same place
            same = probe.place[0] == transcoders.feature_input_hook and probe.place[1] in transcoders.layers
            return probe.place[1] if same else None
        if probe.place[0] not in _BEHIND:
            return None
        layer = probe.place[1] + _BEHIND[probe.place[0]]
        if layer not in transcoders.layers:
            return None
        behind_norm = subject.parts.layers[layer].mlp_post_norm is not None
        straight = transcoders.feature_output_hook == "hook_mlp_out" or not behind_norm
        return layer if straight and not subject.parts.parallel else None

    @torch.no_grad()
    def find(self, columns_D: Tensor | None, input_D: Tensor | None, most: int) -> list[Reason]:
        """The strongest, by size. columns: what a probe reads of the token, if it reads features; input: what is at `place`."""
        found = []
        if columns_D is not None and self.probe.features:
            values = columns_D[self.probe.d_stream :].double().cpu()
            parts = values * self.probe.weight[self.probe.d_stream :].double()
            for at in parts.nonzero().flatten().tolist():
                layer, feature = self.probe.features[at]
                found.append(Reason(layer, feature, float(values[at]), float(parts[at])))
        if input_D is not None and self.layer is not None and self.transcoders is not None:
            _, index, value = self.transcoders.encode_positions(self.layer, input_D[None].to(self.transcoders.device))
            rows_nD = self.transcoders.decoder_rows(self.layer, index, self.layer).to(value)
            read_n = rows_nD @ self.probe.weight[: self.probe.d_stream].to(rows_nD) * self.multiplier
            for feature, activation, part in zip(
                index.tolist(), value.tolist(), (value * read_n).tolist(), strict=True
            ):
                found.append(Reason(self.layer, feature, activation, part))
        return sorted(found, key=lambda reason: -abs(reason.part))[:most]
