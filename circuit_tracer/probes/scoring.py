"""Scores of many probes of one pass: what all of them read together, and one matrix product a place.

    scorer = Scorer(subject, probes)
    found = scorer.read(texts)                  # one pass up to the deepest place, no norms of ours, no unembedding
    scorer.tokens(found)                        # (n, K)

Of a dictionary only the encoder rows of features that probes read are multiplied, where they have one and stand by themselves.
Letters: n tokens that count, K probes, D d_model, F features that are read of a layer, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.run import Place, fast_attention, read
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Subject, Tokens
from circuit_tracer.transcoders.activations import JumpReLU, ReLU

Rows = Mapping[Place, Tensor]  # (n, D) by place


class Scorer:
    """Probes of one model, checked to belong to it, names all different. places: all that they read, and `also`."""

    def __init__(self, subject: Subject, probes: Sequence[Probe], also: Sequence[Place] = ()) -> None:
        if not probes:
            raise InputError("there is nothing to watch; name a probe, or a feature with its threshold")
        names = [probe.name for probe in probes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two probes are called {twice!r}; give each a name of its own")
        for probe in probes:
            probe.check(subject.parts, subject.transcoders)
        self.subject, self.probes = subject, tuple(probes)
        self.dtype, self.device = subject.parts.compute_dtype, subject.parts.device
        self._streams = _stream_weights(self.probes)
        self._layers = _feature_columns(self.probes)
        self._encoders = {layer: _Encoder(subject, layer, index) for layer, index in self._layers.items()}
        self._bias_K = torch.tensor([probe.bias for probe in probes], dtype=self.dtype, device=self.device)
        of_features = [encoder.place for encoder in self._encoders.values()]
        self.places = tuple(dict.fromkeys([*self._streams, *of_features, *also]))

    @plain_torch()
    @torch.no_grad()
    def read(self, texts: Sequence[Tokens]) -> dict[Place, Tensor]:
        """One pass over texts side by side: at every place the counted tokens (n, D), one text's behind the other's."""
        longest = max(len(text.ids) for text in texts)
        ids_BP = torch.stack([torch.cat([text.ids, text.ids[-1:].expand(longest - len(text.ids))]) for text in texts])
        counted = np.zeros(tuple(ids_BP.shape), bool)
        for row, text in enumerate(texts):
            counted[row, : len(text.ids)] = text.counted
        rows_n = torch.from_numpy(np.flatnonzero(counted)).to(self.device)
        with fast_attention(self.subject.parts):
            found = read(self.subject.parts, ids_BP, self.places, norms=None, own_attention=False)
        return {place: x_BPD.flatten(0, 1)[rows_n].to(self.dtype) for place, x_BPD in found.items()}

    @torch.no_grad()
    def tokens(self, rows: Rows) -> Tensor:
        """(n, K): what each probe says of each token by itself."""
        n = len(next(iter(rows.values())))
        scores_nK = self._bias_K.expand(n, -1).clone()
        for place, (numbers, weight_kD) in self._streams.items():
            scores_nK[:, numbers] += rows[place] @ weight_kD.to(rows[place]).T
        active = self._active(rows)
        for number, probe in enumerate(self.probes):
            if probe.features:
                weight = probe.weight[probe.d_stream :].to(scores_nK)
                scores_nK[:, number] += self._columns_of(probe, active) @ weight
        return scores_nK

    @torch.no_grad()
    def columns(self, number: int, rows: Rows) -> Tensor:
        """(n, D): the numbers that one probe reads, the stream's and then its features'."""
        probe = self.probes[number]
        parts = [] if probe.place is None else [rows[probe.place]]
        if probe.features:
            parts.append(self._columns_of(probe, self._active(rows)))
        return torch.cat(parts, dim=1)

    def _active(self, rows: Rows) -> dict[int, Tensor]:
        return {layer: encoder(rows[encoder.place]) for layer, encoder in self._encoders.items()}

    def _columns_of(self, probe: Probe, active: Mapping[int, Tensor]) -> Tensor:
        """(n, F) activations of its features, in its order."""
        at = [(layer, self._layers[layer].index(feature)) for layer, feature in probe.features]
        return torch.stack([active[layer][:, column] for layer, column in at], dim=1)


class _Encoder:
    """Activations of some features of a layer."""

    def __init__(self, subject: Subject, layer: int, index: Sequence[int]) -> None:
        assert subject.transcoders is not None  # probes have been checked against it
        self.transcoders, self.layer, self.index_F = subject.transcoders, layer, torch.tensor(index)
        self.place = (self.transcoders.feature_input_hook, layer)
        function = self.transcoders.activation(layer)
        # features that are compared with others (TopK), go by a router, or have no encoder row (neurons) need the layer whole
        plain = isinstance(function, ReLU | JumpReLU) and self.transcoders.router(layer) is None
        self.alone = plain and not self.transcoders.exact
        if self.alone:
            like = subject.parts.final_norm.parameters.gain  # device and compute dtype
            rows_FD, bias_F = self.transcoders.encoder_rows(layer, self.index_F)
            self.rows_FD, self.bias_F = rows_FD.to(like), bias_F.to(like)
            threshold = function.threshold if isinstance(function, JumpReLU) else None
            self.function = JumpReLU(threshold[self.index_F]) if threshold is not None and threshold.ndim else function

    def __call__(self, x_nD: Tensor) -> Tensor:
        """(n, F)."""
        if self.alone:
            made: Tensor = self.function(x_nD @ self.rows_FD.T + self.bias_F)
            return made
        return self.transcoders.encode_layer(x_nD, self.layer)[:, self.index_F.to(x_nD.device)].to(x_nD)


def _stream_weights(probes: Sequence[Probe]) -> dict[Place, tuple[list[int], Tensor]]:
    """By place: the probes that read the stream there, and their weights (k, D)."""
    found: dict[Place, list[int]] = {}
    for number, probe in enumerate(probes):
        if probe.place is not None:
            found.setdefault(probe.place, []).append(number)
    return {
        place: (numbers, torch.stack([probes[number].weight[: probes[number].d_stream] for number in numbers]))
        for place, numbers in found.items()
    }


def _feature_columns(probes: Sequence[Probe]) -> dict[int, list[int]]:
    """By layer: the features that any probe reads."""
    found: dict[int, set[int]] = {}
    for probe in probes:
        for layer, feature in probe.features:
            found.setdefault(layer, set()).add(feature)
    return {layer: sorted(features) for layer, features in sorted(found.items())}
