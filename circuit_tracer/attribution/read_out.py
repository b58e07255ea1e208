"""What rows start from: where targets and features read the residual stream, and with which vectors.

Letters: T rows, D d_model, n vectors in the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.attribution.attention_reads import AttentionReads, attention_reads
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.transcoder_set import TranscoderSet


@dataclass(frozen=True)
class ReadOut:
    """T read vectors at the input hook of `layer` (L: after the final norm) and at `position`.

    A row may read the stream itself instead, at several places: then its vector is zero, `stream` has its vectors, and `layer`
    and `position` are the last of theirs. Or it is that of a feature of attention, which begins below the MLP of its layer:
    then its vector is zero too, and `attention` has it.
    """

    layer: Tensor  # (T,)
    position: Tensor  # (T,)
    vector: Tensor  # (T, D)
    constant: Tensor  # (T,) what is added to what is read: unembedding bias, encoder bias
    stream: StreamReads | None = None
    attention: AttentionReads | None = None

    def __len__(self) -> int:
        return int(self.layer.shape[0])

    @property
    def of_attention(self) -> Tensor:
        """(T,) which rows are those of features of attention."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        if self.attention is not None:
            mask[self.attention.row] = True
        return mask

    @classmethod
    def of_features(
        cls,
        transcoders: Transcoders,
        network: FrozenNetwork,
        active: ActiveFeatures,
        which: Tensor,
        attention: TranscoderSet | None = None,
    ) -> ReadOut:
        """What some active features, given by canonical index (T,), read on the network's prompt. What an intervention has set
        reads nothing: its vector is zero, its constant the value. attention: the dictionary of attention outputs, if there is
        one.
        """
        layer, position, index = active.layer[which], active.position[which], active.index[which]
        dtype = network.parts.compute_dtype
        device = network.parts.device
        of_attention = index >= transcoders.d_transcoder
        rows = [torch.zeros(1, transcoders.d_model, dtype=dtype, device=device)]
        biases = [torch.zeros(1, dtype=dtype, device=device)]
        place = torch.zeros(len(which), dtype=torch.int64)  # of each row among those read; the first is of attention's
        for depth in layer[~of_attention].unique().tolist():
            here = torch.nonzero((layer == depth) & ~of_attention).flatten()
            read, added = transcoders.reads(
                depth, index[here], position[here], partial(network.transcoder_input, depth)
            )
            place[here] = torch.arange(len(here)) + sum(map(len, rows))
            rows.append(read.to(device, dtype))
            biases.append(added.to(device, dtype))
        there = sent(place, device)
        vector, bias = torch.cat(rows).index_select(0, there), torch.cat(biases).index_select(0, there)
        if active.held is not None:
            held = active.held[which]
            vector[held], bias[held] = 0.0, active.value[which][held].to(device, dtype)
        if attention is None:
            return cls(layer, position, vector, bias)
        row = torch.nonzero(of_attention).flatten()
        first = transcoders.d_transcoder
        reads = attention_reads(attention, row, layer[row], position[row], index[row] - first, dtype)
        return cls(layer, position, vector, bias, attention=reads)

    @classmethod
    def joined(cls, parts: Sequence[ReadOut]) -> ReadOut:
        """The rows of several, one after the other, on the CPU; none of them reads the stream."""

        def column(name: str) -> Tensor:
            return torch.cat([getattr(each, name).cpu() for each in parts])

        return cls(column("layer"), column("position"), column("vector"), column("constant"))

    def take(self, chosen: Tensor) -> ReadOut:
        """Some of the rows, in the order asked for."""
        stream = None if self.stream is None else self.stream.of_rows(chosen)
        attention = None if self.attention is None else self.attention.of_rows(chosen)
        layer, position = self.layer[chosen], self.position[chosen]
        vector, constant = (each.index_select(0, sent(chosen, each.device)) for each in (self.vector, self.constant))
        return ReadOut(layer, position, vector, constant, stream, attention)
