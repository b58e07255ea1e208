"""What a dictionary makes of a batch (training/README.md §3).

Letters: S source layers, B tokens, M prefixes (1 without Matryoshka), D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuit_tracer.kernels.decode import decode_sources_
from circuit_tracer.kernels.decode.columns import Written
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.prefixes import Prefixes
from circuit_tracer.training.step.scratch import Scratch


def predict(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    activations: Sequence[SparseActivations],
    ranks: FeatureRanks,
    scratch: Scratch,
    name: str = "outputs",
) -> Tensor:
    """Outputs (B, S, D) in the space of training: decoders of all ranks, biases, skip. ``name``: their place in ``scratch``."""
    whole = Prefixes((dictionary.n_features,))
    return predict_prefixes(dictionary, x_SBD, activations, whole, ranks, scratch, name)[:, 0]


def predict_prefixes(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    activations: Sequence[SparseActivations],
    prefixes: Prefixes,
    ranks: FeatureRanks,
    scratch: Scratch,
    name: str = "outputs",
) -> Tensor:
    """The same of every prefix: (B, M, S, D)."""
    n_rows, n_layers, width = x_SBD[0].shape[0], dictionary.n_layers, dictionary.d_model
    flat_RC = scratch.take(name, x_SBD[0], n_rows * prefixes.count, n_layers * width).zero_()
    written = [
        Written(prefixes.spread(entries, dictionary.owned.start), dictionary.W_dec[source], source * width)
        for source, entries in enumerate(activations)
    ]
    decode_sources_(flat_RC, written)
    out_BMSD = ranks.all_reduce_(flat_RC).view(n_rows, prefixes.count, n_layers, width)
    prefixes.add_up_(out_BMSD)
    out_BMSD += dictionary.b_dec
    if dictionary.W_skip is not None:
        for target, x_BD in enumerate(x_SBD):
            out_BMSD[:, :, target] += (x_BD @ dictionary.W_skip[target].T)[:, None]
    return out_BMSD
