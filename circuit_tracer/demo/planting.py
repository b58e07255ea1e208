"""Where the transcoder's training starts: every feature stands for contexts in which a layer writes much the same.

From random rows few features survive: those that are active first grow, the cut rises with them, and the rest never passes
it; the few then stand for many things each. A planted feature is as strong from the first step on as training would make it.
Contexts belong together by what the MLP writes, not by what it reads: inputs for two cities of a state are hardly alike
(cosine 0.36 at the first layer), outputs are (0.95), and what is common to the inputs is found in cities never seen too.

Letters: S source layers, N contexts, F features a layer, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.training.step.dictionary import Dictionary, row_norms

SHARE = 0.7  # of its contexts' mean output that a planted feature writes: features of contexts alike fire together
NOISE = 0.1  # what is left of the random decoder rows, which reach the later layers too


def plant_(dictionary: Dictionary, x_SND: Tensor, y_SND: Tensor, weight_N: Tensor, seed: int) -> None:
    """Give each feature of each layer the contexts whose outputs lie nearest to one of those drawn by `spread`.

    It reads along the mean of their inputs, fires above half of that mean's length, and writes most of the mean of their
    outputs, all in the space of training. A feature without contexts stays as it is.
    """
    chance = torch.Generator().manual_seed(seed)
    for source, (x_ND, y_ND) in enumerate(zip(x_SND, y_SND, strict=True)):
        nearest_N = torch.cdist(y_ND, y_ND[spread(y_ND, weight_N, dictionary.n_features, chance)]).argmin(1)
        belongs_FN = weight_N * (nearest_N == torch.arange(dictionary.n_features)[:, None])
        used = belongs_FN.sum(1) > 0
        share_FN = belongs_FN[used] / belongs_FN[used].sum(1, keepdim=True)
        reads_FD, writes_FD = share_FN @ x_ND, share_FN @ y_ND
        length_F1 = reads_FD.norm(dim=1, keepdim=True).clamp(min=1e-6)
        dictionary.W_enc[source][used] = reads_FD / length_F1
        dictionary.b_enc[source][used] = -length_F1[:, 0] / 2
        dictionary.W_dec[source].mul_(NOISE)
        dictionary.W_dec[source][used, : dictionary.d_model] += 2 * SHARE * writes_FD / length_F1
        dictionary.norms[source].copy_(row_norms(dictionary.W_dec[source]))


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
