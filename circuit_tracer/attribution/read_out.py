"""What rows start from: where targets and features read the residual stream, and with which vectors.

Letters: T rows, D d_model, n vectors in the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders


@dataclass(frozen=True)
class ReadOut:
    """T read vectors at the input hook of `layer` (L: after the final norm) and at `position`.

    A row may read the stream itself instead, at several places: then its vector is zero, `stream` has its vectors, and `layer`
    and `position` are the last of theirs.
    """

    layer: Tensor  # (T,)
    position: Tensor  # (T,)
    vector: Tensor  # (T, D)
    constant: Tensor  # (T,) what is added to what is read: unembedding bias, encoder bias
    stream: StreamReads | None = None

    def __len__(self) -> int:
        return int(self.layer.shape[0])

    @classmethod
    def of_features(
        cls, transcoders: Transcoders, network: FrozenNetwork, active: ActiveFeatures, which: Tensor
    ) -> ReadOut:
        """What some active features, given by canonical index (T,), read on the network's prompt. What an intervention has set
        reads nothing: its vector is zero, its constant the value.
        """
        layer, position, index = active.layer[which], active.position[which], active.index[which]
        dtype = network.parts.compute_dtype
        vector = torch.empty(len(which), transcoders.d_model, dtype=dtype)
        bias = torch.empty(len(which), dtype=dtype)
        for depth in layer.unique().tolist():
            here = layer == depth
            rows, biases = transcoders.reads(
                depth, index[here], position[here], partial(network.transcoder_input, depth)
            )
            vector[here], bias[here] = rows.to("cpu", dtype), biases.to("cpu", dtype)
        if active.held is not None:
            held = active.held[which]
            vector[held], bias[held] = 0.0, active.value[which][held].to("cpu", dtype)
        return cls(layer, position, vector, bias)

    @classmethod
    def joined(cls, parts: Sequence[ReadOut]) -> ReadOut:
        """The rows of several, one after the other, on the CPU; none of them reads the stream."""

        def column(name: str) -> Tensor:
            return torch.cat([getattr(each, name).cpu() for each in parts])

        return cls(column("layer"), column("position"), column("vector"), column("constant"))

    def take(self, chosen: Tensor) -> ReadOut:
        """Some of the rows, in the order asked for."""
        stream = None if self.stream is None else self.stream.of_rows(chosen)
        return ReadOut(self.layer[chosen], self.position[chosen], self.vector[chosen], self.constant[chosen], stream)
