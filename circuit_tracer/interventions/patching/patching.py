"""Activation patching between two prompts: put what one run computed into the other, place by place.

*Denoising* runs the corrupted prompt with activations of the clean one: which places are sufficient to restore the answer.
*Noising* runs the clean prompt with activations of the corrupted one: which are necessary. Everything is live. Features are
set to the activations that they have on the other prompt (direct semantics, attention live).
Letters: B patches of a pass, P positions, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.apply import apply_each
from circuit_tracer.interventions.features.edits import Features, features_of, set_to
from circuit_tracer.interventions.features.resolve import check_feature
from circuit_tracer.interventions.features.semantics import Semantics
from circuit_tracer.interventions.patching.attribution_patching import strongest_features
from circuit_tracer.interventions.patching.metrics import Metric
from circuit_tracer.interventions.patching.pair import (
    SITES,
    Pair,
    Patch,
    Site,
    kept_activations,
    last_logits,
    pair_of,
    patches_of,
    places_of,
    require_single,
)
from circuit_tracer.interventions.patching.table import Mode, PatchTable
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.progress import each_of

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@typed
@plain_torch()
def activation_patching(
    model: Traceable,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric | None = None,
    *,
    mode: Mode = "denoising",
    sites: Iterable[Site] = ("resid", "attn_out", "mlp_out"),
    features: Features | int = 0,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | Literal["together"] | None = None,
    batch_size: int = 16,
) -> PatchTable:
    """Replace one activation after the other and measure; the answer is a table with a heat map (`.draw(path)`).

    Cost: two passes, and one for every `batch_size` patches; positions before the first difference need none.

    Args:
        model: The replacement model.
        clean: The prompt that is answered rightly.
        corrupted: One of as many tokens.
        metric: What is measured, such as `logit_difference`; None: the logit difference of the two prompts' answers.
        mode: "denoising" puts clean activations into the corrupted run, "noising" the other way round.
        sites: resid (the residual stream that enters a layer), attn_out, mlp_out, head.
        features: Also these features, or the so many that `attribution_patching` holds for the strongest.
        layers: None: all.
        positions: None for every one, "together" for all at once (of sites only); a feature that names its position keeps
            it.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        The table, a row a patch.

    Raises:
        InputError: For prompts of different lengths, or answered alike without a metric, and for places that do not exist.

    Examples:
        >>> from circuit_tracer.interventions import activation_patching
        >>> table = activation_patching(model, PROMPT, PROMPT.replace("Dallas", "Portland"), sites=["resid"])
        >>> best = table.largest(1)[0]
        >>> best["layer"], best["position"], round(best["effect"], 2)
        (0, 7, 1.0)
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    pair = pair_of(model, clean, corrupted, metric, mode)
    layers = None if layers is None else list(layers)
    positions = places_of(pair, positions)
    patches = patches_of(pair, sites, layers, positions)
    chosen = _features(pair, features, layers, positions)
    value = _measure(pair, patches, batch_size)
    if chosen:
        value = torch.cat([value, _measure_features(pair, chosen, batch_size).to(value)])
    return pair.table([*patches, *chosen], value, estimated=False)


@torch.no_grad()
def _measure(pair: Pair, patches: list[Patch], batch_size: int) -> Tensor:
    """(n,) metric of each patched run."""
    parts = pair.model.parts
    value = torch.full((len(patches),), pair.base_value, dtype=parts.compute_dtype, device=parts.device)
    start = pair.first_difference
    moving = [number for number, patch in enumerate(patches) if patch.position < 0 or patch.position >= start]
    donor = kept_activations(parts, pair.donor, {SITES[patches[number].site] for number in moving})
    for first in each_of("patching", range(0, len(moving), batch_size)):
        batch = moving[first : first + batch_size]
        chosen = [patches[number] for number in batch]

        def replace(site: str, layer: int, x_BPN: Tensor, chosen: list[Patch] = chosen) -> Tensor | None:
            here = [(row, patch) for row, patch in enumerate(chosen) if (patch.site, patch.layer) == (site, layer)]
            x_BPN = x_BPN.clone() if here else x_BPN
            for row, patch in here:
                part = patch.rows, patch.columns(parts.config.d_head)
                x_BPN[(row, *part)] = donor[SITES[patch.site], layer][part]
            return x_BPN if here else None

        visits = {SITES[site]: partial(replace, site) for site in {patch.site for patch in chosen}}
        value[batch] = pair.metric.of(last_logits(parts, pair.base, visits, copies=len(chosen)))
    return value


def _features(pair: Pair, features: Features | int, layers: list[int] | None, places: list[int]) -> list[Patch]:
    if isinstance(features, int):
        if features < 0:
            raise InputError(f"features is {features}; give features, or how many of the strongest")
        if features == 0:
            return []
        return strongest_features(pair, features, layers, places)
    patches = []
    for feature in features_of(features):
        check_feature(feature, pair.model.transcoders)
        if feature.position is None:
            require_single(places)
        elif not 0 <= feature.position < len(pair.base):
            raise InputError(
                f"feature {feature} at position {feature.position}: positions are 0 to {len(pair.base) - 1}"
            )
        here = places if feature.position is None else [feature.position]
        patches += [Patch("feature", feature.layer, position, feature.feature_idx) for position in here]
    return patches


def _measure_features(pair: Pair, patches: list[Patch], batch_size: int) -> Tensor:
    """(n,) metric when each feature has the donor's activation."""
    base, donor = pair.runs
    experiments = []
    for patch in patches:
        value = donor.activations(patch.layer, torch.tensor([patch.position]), torch.tensor([patch.unit]))
        experiments.append([set_to((patch.layer, patch.position, patch.unit), float(value))])
    live = Semantics("direct", freeze_attention=False)
    outcomes = apply_each(pair.model, base, experiments, live, "none", batch_size)
    final = torch.stack([outcome.final[-1] for outcome in outcomes])
    return pair.metric.of(logits_at(pair.model.parts, final))
