"""What the baselines read: the model itself, without a graph, where the graph's targets are read.

Letters: P positions, S places of the residual stream (before the first layer, behind each), D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.classify.folds import Array
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, Place, Visit

SUMMED = 5  # most probable tokens whose probability is added up


class Reading(NamedTuple):
    """logits: `logit_statistics`. stream: (S, D) float32."""

    logits: dict[str, float]
    stream: Array


def logit_statistics(logits_V: Tensor) -> dict[str, float]:
    """What logits say by themselves of how sure the model is: the usual baselines, by name.

    probability and margin (to the second) of the most probable token, that of the first five together, entropy in nats;
    logit and gap, the same of logits; energy, the log of the sum of their exponentials; spread, their standard deviation.
    """
    logits_V = logits_V.double()
    log_V = torch.log_softmax(logits_V, 0)
    ranked = logits_V.sort(descending=True).values
    sure = log_V.sort(descending=True).values.exp()
    return {
        "probability": float(sure[0]),
        "margin": float(sure[0] - sure[1]),
        "first_five": float(sure[:SUMMED].sum()),
        "entropy": float(-(log_V.exp() * log_V).nan_to_num(0).sum()),
        "logit": float(ranked[0]),
        "gap": float(ranked[0] - ranked[1]),
        "energy": float(torch.logsumexp(logits_V, 0)),
        "spread": float(logits_V.std()),
    }


@torch.no_grad()
def read_model(parts: ModelParts, ids: Tensor, position: int) -> Reading:
    """One pass over ids (P,), read at a position."""
    n_layers, kept = len(parts.layers), dict[int, Tensor]()

    def keep(place: int) -> Visit:
        def visit(_: int, resid_1PD: Tensor) -> None:
            kept[place] = resid_1PD[0, position].detach().float().cpu()

        return visit

    visits: dict[Place, Visit] = {("hook_resid_pre", 0): keep(0)}
    visits |= {("hook_resid_post", layer): keep(layer + 1) for layer in range(n_layers)}
    final_PD = ModelRun(parts, visits)(ids).final[0]
    logits_V = logits_at(parts, final_PD[position][None])[0]
    stream_SD = torch.stack([kept[place] for place in range(n_layers + 1)])
    return Reading(logit_statistics(logits_V), np.asarray(stream_SD))
