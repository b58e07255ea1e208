"""Attribution patching: the effect of every patch at once, from gradients of the metric, for comparison with the real one.

    value(patch) ~ base + <donor activation - base activation, gradient of the metric at that activation>

The gradient is that of the base run, or the mean over `steps` runs whose token embeddings lie on the way from base to donor
(integrated gradients over inputs). Exact for an activation that the metric depends on linearly.
Letters: P positions, D d_model, H heads, n features.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.passes import GOES_ON
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
from circuit_tracer.models.run import Place
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.progress import each_of

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

FIRST: Place = ("hook_resid_pre", 0)


@typed
@plain_torch()
def attribution_patching(
    model: Traceable,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric | None = None,
    *,
    mode: Mode = "denoising",
    sites: Iterable[Site] = ("resid", "attn_out", "mlp_out"),
    features: int = 0,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | Literal["together"] | None = None,
    steps: int = 1,
) -> PatchTable:
    """The table of `activation_patching`, estimated with `steps` backward passes.

    Args:
        model: The replacement model.
        clean: The prompt that is answered rightly.
        corrupted: One of as many tokens.
        metric: What is measured, such as `logit_difference`; None: the logit difference of the two prompts' answers.
        mode: "denoising" puts clean activations into the corrupted run, "noising" the other way round.
        sites: resid (the residual stream that enters a layer), attn_out, mlp_out, head.
        features: So many of the strongest at these positions.
        layers: None: all.
        positions: None for every one, "together" for all at once (of sites only); a feature that names its position keeps
            it.
        steps: Backward passes, points on the way from one run to the other.

    Returns:
        The table, a row a patch, marked as estimated.

    Raises:
        InputError: As `activation_patching`.
    """
    if steps < 1 or features < 0:
        raise InputError(f"steps is {steps} and features {features}; they must be at least 1 and 0")
    pair = pair_of(model, clean, corrupted, metric, mode)
    layers = None if layers is None else list(layers)
    places = places_of(pair, positions)
    patches = patches_of(pair, sites, layers, places)
    if features:
        require_single(places)
    parts, names = model.parts, {SITES[patch.site] for patch in patches}
    gradient = mean_gradients(pair, names, steps) if names else {}
    base, donor = (kept_activations(parts, ids, names) for ids in (pair.base, pair.donor))
    product = {place: (donor[place] - base[place]).to(parts.compute_dtype) * gradient[place] for place in gradient}
    shares = (
        product[SITES[patch.site], patch.layer][patch.rows, patch.columns(parts.config.d_head)] for patch in patches
    )
    value = [pair.base_value + float(share.sum()) for share in shares]
    if features:
        found, estimate = estimate_features(pair, steps, layers, places)
        order = torch.argsort(estimate.abs(), descending=True, stable=True)[:features].tolist()
        patches += [found[number] for number in order]
        value += [pair.base_value + float(estimate[number]) for number in order]
    return pair.table(patches, torch.tensor(value, dtype=torch.float64), estimated=True)


def strongest_features(pair: Pair, count: int, layers: list[int] | None, places: list[int]) -> list[Patch]:
    """The `count` features at these positions whose patch moves the metric most, by the gradient of the base run."""
    require_single(places)
    patches, estimate = estimate_features(pair, 1, layers, places)
    order = torch.argsort(estimate.abs(), descending=True, stable=True)[:count]
    return [patches[number] for number in order.tolist()]


def mean_gradients(pair: Pair, sites: set[str], steps: int) -> dict[Place, Tensor]:
    """Gradients (P, ...) of the metric at sites of every layer, in the compute dtype."""
    parts = pair.model.parts
    inputs = [kept_activations(parts, ids, [FIRST[0]])[FIRST] for ids in (pair.base, pair.donor)]
    total: dict[Place, Tensor] = {}
    for step in each_of("gradients", range(steps)):
        start_1PD = torch.lerp(inputs[0], inputs[1], step / steps)[None].requires_grad_()
        live: dict[Place, Tensor] = {}

        def keep(
            site: str, layer: int, x: Tensor, start: Tensor = start_1PD, live: dict[Place, Tensor] = live
        ) -> Tensor | None:
            begins = (site, layer) == FIRST
            live[site, layer] = start if begins else x
            return start if begins else None

        visits = {site: partial(keep, site) for site in sites | {FIRST[0]}}
        with torch.enable_grad():
            metric = pair.metric.of(last_logits(parts, pair.base, visits, gradients=True)).sum()
        places = [place for place in live if place[0] in sites]
        found = torch.autograd.grad(metric, [live[place] for place in places], allow_unused=True)
        for place, gradient in zip(places, found, strict=True):
            here = torch.zeros_like(live[place]) if gradient is None else gradient
            total[place] = total.get(place, 0) + here[0].detach().to(parts.compute_dtype) / steps
    return total


def estimate_features(
    pair: Pair, steps: int, layers: list[int] | None, places: list[int]
) -> tuple[list[Patch], Tensor]:
    """Every feature whose activation differs between the prompts at these positions, with the estimated change (n,) of
    the metric.
    """
    transcoders, (base, donor) = pair.model.transcoders, pair.runs
    written = transcoders.feature_output_hook
    sites = {written, GOES_ON[written]} if transcoders.is_autoencoder and written in GOES_ON else {written}
    gradient = mean_gradients(pair, sites, steps)
    patches: list[Patch] = []
    estimates: list[Tensor] = []
    for layer in range(transcoders.n_layers) if layers is None else layers:
        width, slices = transcoders.n_features(layer), [run.active.of_layer(layer) for run in (base, donor)]
        tables = list(zip((base.active, donor.active), slices, strict=True))
        key, inverse = torch.unique(
            torch.cat([table.position[here] * width + table.index[here] for table, here in tables]), return_inverse=True
        )
        signed = torch.cat([sign * table.value[here] for sign, (table, here) in zip((-1, 1), tables, strict=True)])
        here = torch.isin(key // width, torch.tensor(places, dtype=torch.int64, device=key.device))
        change = torch.zeros(len(key), dtype=pair.model.parts.compute_dtype, device=key.device)
        change.index_add_(0, inverse, signed.to(change))
        key, change = key[here], change[here]
        position, index = key // width, key % width
        slope = torch.zeros_like(change)
        unique, back = torch.unique(index, return_inverse=True)
        rows_nTD = transcoders.decoder_rows(layer, unique).to(change)
        for slot, target in enumerate(transcoders.target_layers(layer)):
            reaching = torch.stack([gradient[site, target][position] for site in sorted(sites)]).sum(0)
            slope += (rows_nTD[back, slot] * reaching).sum(-1)
        patches += [Patch("feature", layer, p, f) for p, f in zip(position.tolist(), index.tolist(), strict=True)]
        estimates.append(change * slope)
    return patches, torch.cat(estimates) if estimates else torch.zeros(0)
