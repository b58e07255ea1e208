"""Where the transcoder's training starts: every feature stands for a context, and contexts that differ in what MLPs write.

From random rows few features survive: those that are active first grow, the cut rises with them, and the rest never passes
it; the few then stand for many things each. A planted feature is as strong from the first step on as training would make it.

Letters: S source layers, N contexts, F features a layer, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.training.step.dictionary import Dictionary, row_norms

SHARE = 0.7  # of its context's output that a planted feature writes: features of contexts alike fire together
NOISE = 0.1  # what is left of the random decoder rows, which reach the later layers too


def plant_(dictionary: Dictionary, x_SND: Tensor, y_SND: Tensor, weight_N: Tensor, seed: int) -> None:
    """Give each feature of each layer a context of its own, spread over what the layer writes (`spread`).

    It reads along the context's input, fires above half of its length, and writes most of its layer's output, all in the
    space of training.
    """
    chance = torch.Generator().manual_seed(seed)
    for source, (x_ND, y_ND) in enumerate(zip(x_SND, y_SND, strict=True)):
        chosen_F = spread(y_ND, weight_N, dictionary.n_features, chance)
        length_F1 = x_ND[chosen_F].norm(dim=1, keepdim=True).clamp(min=1e-6)
        dictionary.W_enc[source].copy_(x_ND[chosen_F] / length_F1)
        dictionary.b_enc[source].copy_(-length_F1[:, 0] / 2)
        rows_FC = dictionary.W_dec[source].mul_(NOISE)
        rows_FC[:, : dictionary.d_model] += 2 * SHARE * y_ND[chosen_F] / length_F1
        dictionary.norms[source].copy_(row_norms(rows_FC))


def spread(y_ND: Tensor, weight_N: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """``count`` rows far from each other: each drawn by weight times squared distance from zero and the nearest row drawn
    before (k-means++: Arthur and Vassilvitskii 2007); by weight alone once every row is drawn."""
    distance_N, chosen = y_ND.square().sum(1), []
    for _ in range(count):
        chances_N = weight_N * distance_N
        row = int(torch.multinomial(chances_N if chances_N.any() else weight_N, 1, generator=chance))
        chosen.append(row)
        distance_N = torch.minimum(distance_N, (y_ND - y_ND[row]).square().sum(1))
    return torch.tensor(chosen)
