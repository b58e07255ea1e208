"""Do autoencoders fit what they read here? Said loudly where they rebuild it worse than nothing would.

Letters: n tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from circuit_tracer.attribution.normalised_error import nmse_of
from circuit_tracer.errors import warn
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.transcoders.base import Transcoders

TOKENS = 512  # looked at
_MOST_NAMED = 4


@plain_torch()
@torch.no_grad()
def misfit(transcoders: Transcoders, layer: int, x_nD: Tensor) -> float:
    """NMSE of what the autoencoder of a layer makes of its inputs (`attribution.normalised_error.nmse_of`)."""
    x_nD = x_nD[:TOKENS].to(transcoders.device)
    position, index, value = transcoders.encode_positions(layer, x_nD)
    unique, inverse = torch.unique(index, return_inverse=True)
    rows_nD = transcoders.decoder_rows(layer, unique, layer).to(value)
    made_nD = transcoders.decoder_bias(layer).to(value).repeat(len(x_nD), 1)
    made_nD.index_add_(0, position, rows_nD[inverse] * value[:, None])
    return float(nmse_of(x_nD, x_nD - made_nD))


def warn_of_misfit(transcoders: Transcoders, read: Mapping[int, Tensor]) -> None:
    """Warn of layers whose autoencoder has an NMSE above 1 on what it reads (n, D)."""
    poor = {layer: value for layer, x in read.items() if (value := misfit(transcoders, layer, x)) > 1}
    if not poor:
        return
    named = ", ".join(f"{layer} ({value:.3g})" for layer, value in list(poor.items())[:_MOST_NAMED])
    more = f" and {len(poor) - _MOST_NAMED} more" if len(poor) > _MOST_NAMED else ""
    warn(
        f"on this text the autoencoders at {transcoders.feature_input_hook} rebuild what they read worse than its mean would: "
        f"NMSE is above 1 in layer{'s' if len(poor) > 1 else ''} {named}{more} of {len(read)} looked at. Their features say "
        "nothing of this model here. Likely they are of another model or place, or in another scale (normalisation that was "
        "not folded in); or the text is unlike all that they were trained on",
        ReconstructionWarning,
    )
