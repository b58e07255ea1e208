"""A prompt's attention, where a dictionary replaces it, made linear: decoder rows, errors, constants (README.md §10).

Letters: L layers, P positions, D d_model, V and W widths at the dictionary's input and output hook.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.decoder_rows import DecoderRows, read_decoder_rows
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.normalised_error import nmse_of
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.errors import NumericalError


@dataclass(frozen=True)
class LinearAttention:
    """What a sweep needs of it."""

    frozen: FrozenAttention
    decoder: DecoderRows
    error: dict[int, Tensor]  # (P, D) what its errors write into the stream, by layer; zero at left-out positions
    nmse: dict[int, float]  # what features leave of the outputs, over their variance, by layer

    @property
    def layers(self) -> tuple[int, ...]:
        """Those whose attention is replaced."""
        return self.frozen.layers

    @property
    def warning(self) -> str | None:
        """What to tell of layers whose outputs the features rebuild worse than their mean would."""
        poor = [f"{layer} ({value:.3g})" for layer, value in self.nmse.items() if value > 1]
        if not poor:
            return None
        return (
            "on this prompt the dictionary of attention rebuilds what attention gives worse than its mean would: NMSE is above "
            f"1 in layers {', '.join(poor[:8])}, {len(poor)} of {len(self.nmse)}. The graph is exact, but these features "
            "do not explain attention here; check that the dictionary was trained on this model and place"
        )

    def constants(self, keep_P: Tensor, kinds: Collection[str]) -> dict[int, Tensor]:
        """What stands for the attention of each layer in a network of constants, as it is added to the stream (P, D)."""
        frozen, found = self.frozen, {}
        for layer in self.layers:
            y = frozen.true_output(layer)
            bias = frozen.dictionary.decoder_bias(layer).to(y).expand_as(y)
            every = torch.arange(len(y), device=y.device)
            own = y.new_zeros(len(y), frozen.network.parts.config.d_model)
            if "decoder" in kinds:
                own = own + frozen.write_at(layer, bias, every)
            if "attention" in kinds:
                own = own + frozen.into_stream(layer, torch.zeros_like(y))
            left_out = frozen.into_stream(layer, y) if "left_out" in kinds else torch.zeros_like(own)
            found[layer] = torch.where(keep_P.to(y.device)[:, None], own, left_out)
        return found


def linear_attention(
    frozen: FrozenAttention, sources: SourceTable, keep_P: Tensor, keep_rows: bool, chunk_bytes: int
) -> LinearAttention:
    """Read the decoder rows of the active features of attention, and know the errors."""
    network, dictionary = frozen.network, frozen.dictionary
    decoder, features_LPW = read_decoder_rows(sources, dictionary, network, keep_rows, chunk_bytes, frozen)
    error, nmse = {}, {}
    for layer in frozen.layers:
        y, kept = frozen.true_output(layer), keep_P.to(features_LPW.device)
        left = y - features_LPW[layer] - dictionary.decoder_bias(layer).to(y)
        left = torch.where(kept[:, None], left, 0)
        if not torch.isfinite(left).all():
            raise NumericalError(
                f"layer {layer}: the reconstruction of attention outputs is not finite on this prompt; check the dictionary's "
                "weights for NaN or infinity"
            )
        error[layer] = frozen.write_at(layer, left, torch.arange(len(y), device=y.device))
        nmse[layer] = float(nmse_of(y[kept], left[kept]))
    return LinearAttention(frozen, decoder, error, nmse)
