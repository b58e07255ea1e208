"""What a dictionary that explains nothing would show: the same measurements for a random one, fitted to this prompt."""

from __future__ import annotations

import torch

from circuit_tracer.interventions.validation.bench import Bench
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.random_dictionary import random_baseline


def random_dictionary(bench: Bench, seed: int) -> Transcoders:
    """Random features of the same shape, as many active on this prompt in each layer; thresholds, scales and biases fitted
    to this very prompt, which flatters it.
    """
    there = [position for position in range(bench.n_pos) if position not in bench.clean.left_out]
    inputs, outputs = (
        torch.stack([read(layer)[there] for layer in range(bench.n_layers)], dim=1)
        for read in (bench.network.transcoder_input, bench.network.transcoder_output)
    )
    return random_baseline(bench.model.transcoders, (inputs, outputs), seed)
