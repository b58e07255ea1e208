"""Activation patching between two prompts: put what one run computed into the other, place by place.

*Denoising* runs the corrupted prompt with activations of the clean one: which places are sufficient to restore the answer.
*Noising* runs the clean prompt with activations of the corrupted one: which are necessary. Everything is live. Features are
set to the activations that they have on the other prompt (direct semantics, attention live).
Letters: B patches of a pass, P positions, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.apply import apply_each
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Features, features_of, set_to
from circuit_tracer.interventions.features.resolve import check_feature
from circuit_tracer.interventions.features.semantics import Semantics
from circuit_tracer.interventions.patching.metrics import Metric, logit_difference
from circuit_tracer.interventions.patching.table import Mode, PatchTable
from circuit_tracer.interventions.sites import SITES, Site, run_batch, visiting
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.tokenization import Prompt, token_strings

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

TOGETHER = -1  # a patch of all positions
MINIMUM = 1e-9  # the metrics of the two prompts must differ by more, relative to their size


class Patch(NamedTuple):
    """One activation to replace; position -1: all; unit: head or feature, -1 for neither."""

    site: str
    layer: int
    position: int
    unit: int


@dataclass(frozen=True)
class Pair:
    """Two prompts of equal length (P,), base the one that is patched, donor the one that activations come from."""

    model: Traceable
    base: Tensor
    donor: Tensor
    mode: Mode
    metric: Metric
    base_value: float
    donor_value: float

    @property
    def tokens(self) -> list[str]:
        """P texts; both, clean first, where the prompts differ."""
        clean, corrupted = (self.donor, self.base) if self.mode == "denoising" else (self.base, self.donor)
        both = (token_strings(ids, self.model.tokenizer) for ids in (clean, corrupted))
        return [a if a == b else f"{a.strip()} / {b.strip()}" for a, b in zip(*both, strict=True)]

    @property
    def first_difference(self) -> int:
        """The first position whose token differs; before it the runs are the same."""
        return int((self.base != self.donor).nonzero()[0])

    @cached_property
    def runs(self) -> tuple[CleanRun, CleanRun]:
        """Clean runs of base and donor, for features."""
        return CleanRun(self.model, self.base, patterns=False), CleanRun(self.model, self.donor, patterns=False)

    def table(self, patches: Sequence[Patch], value: Tensor, estimated: bool) -> PatchTable:
        """Values (n,) of patches as a table."""
        number = torch.tensor([patch[1:] for patch in patches], dtype=torch.int64).reshape(-1, 3)
        return PatchTable(
            mode=self.mode,
            metric=self.metric.label,
            base=self.base_value,
            donor=self.donor_value,
            tokens=self.tokens,
            site=[patch.site for patch in patches],
            layer=number[:, 0],
            position=number[:, 1],
            unit=number[:, 2],
            value=value.cpu().double(),
            estimated=estimated,
        )


@torch.no_grad()
def pair_of(model: Traceable, clean: Prompt, corrupted: Prompt, metric: Metric | None, mode: Mode) -> Pair:
    """Check two prompts and run both. Raises InputError for prompts of different length, equal ones, or a metric that
    does not tell them apart. metric: None for the logit difference of the two prompts' answers.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is {mode!r}; use {' or '.join(get_args(Mode))}")
    ids = [model.ensure_tokenized(prompt) for prompt in (clean, corrupted)]
    if len(ids[0]) != len(ids[1]):
        texts = [token_strings(each, model.tokenizer) for each in ids]
        raise InputError(
            f"the prompts have {len(ids[0])} and {len(ids[1])} tokens ({texts[0]} and {texts[1]}); patching puts an "
            "activation where the other prompt has the same position, so they must be of equal length. Reword one."
        )
    if torch.equal(*ids):
        raise InputError("the two prompts are the same tokens; there is nothing to patch")
    logits = []
    for each in ids:
        check_length(model.parts, each)
        with visiting(model.parts, (), lambda *_: None):
            logits.append(run_batch(model.parts, each))
    if metric is None:
        answers = [int(each.argmax()) for each in logits]
        if answers[0] == answers[1]:
            raise InputError(f"both prompts are answered with token {answers[0]}; name a metric that tells them apart")
        metric = logit_difference(model, *answers)
    values = [float(metric.of(each)) for each in logits]
    if abs(values[0] - values[1]) <= MINIMUM * max(abs(values[0]), abs(values[1])):
        raise InputError(f"the {metric.label} is {values[0]:.6g} on both prompts; name a metric that tells them apart")
    base, donor = (1, 0) if mode == "denoising" else (0, 1)
    return Pair(model, ids[base], ids[donor], mode, metric, values[base], values[donor])


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

    sites: resid (the residual stream that enters a layer), attn_out, mlp_out, head. features: also these features, or the
    so many that `attribution_patching` holds for the strongest. positions: None for every one, "together" for all at once
    (of sites only); a feature that names its position keeps it.
    Cost: two passes, and one for every `batch_size` patches; positions before the first difference need none.
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


def places_of(pair: Pair, positions: Iterable[int] | Literal["together"] | None) -> list[int]:
    """Positions to patch, counted from 0; -1 for all of them at once. InputError for what does not exist."""
    n_pos = len(pair.base)
    if isinstance(positions, str):
        if positions != "together":
            raise InputError(f"positions is {positions!r}; give numbers, 'together' for all at once, or None for each")
        return [TOGETHER]
    places = list(range(n_pos)) if positions is None else [int(position) for position in positions]
    for position in places:
        if not -n_pos <= position < n_pos:
            raise InputError(
                f"position {position} to patch: the prompts' {n_pos} tokens are positions 0 to {n_pos - 1}"
            )
    return [position % n_pos for position in places]


def require_single(places: list[int]) -> None:
    """Refuse features at all positions at once."""
    if TOGETHER in places:
        raise InputError(
            "features are patched one position at a time, not with positions='together'; leave one of them out, or use "
            "apply_edits with take_from to put a feature's activations of all positions into the other prompt"
        )


def patches_of(pair: Pair, sites: Iterable[Site], layers: list[int] | None, places: list[int]) -> list[Patch]:
    """The activations to replace, in order of site, layer, head and position. InputError for what does not exist."""
    config = pair.model.parts.config
    chosen = list(range(config.n_layers)) if layers is None else [int(layer) for layer in layers]
    if chosen and not (min(chosen) >= 0 and max(chosen) < config.n_layers):
        raise InputError(f"layers {chosen} to patch: the model has layers 0 to {config.n_layers - 1}")
    patches = []
    for site in sites:
        if site not in SITES:
            raise InputError(f"site {site!r} is unknown; use {', '.join(SITES)}, and features=... for features")
        units = range(config.n_heads) if site == "head" else [-1]
        patches += [Patch(site, layer, place, unit) for layer in chosen for unit in units for place in places]
    return patches


@torch.no_grad()
def _measure(pair: Pair, patches: list[Patch], batch_size: int) -> Tensor:
    """(n,) metric of each patched run."""
    parts = pair.model.parts
    value = torch.full((len(patches),), pair.base_value, dtype=parts.compute_dtype, device=parts.device)
    start = pair.first_difference
    moving = [number for number, patch in enumerate(patches) if patch.position < 0 or patch.position >= start]
    donor = kept_activations(pair, pair.donor, {patches[number].site for number in moving})
    for first in range(0, len(moving), batch_size):
        batch = moving[first : first + batch_size]
        chosen = [patches[number] for number in batch]

        def replace(site: str, layer: int, x: Tensor, chosen: list[Patch] = chosen) -> Tensor | None:
            here = [row for row, patch in enumerate(chosen) if (patch.site, patch.layer) == (site, layer)]
            if not here:
                return None
            x = x.clone()
            for row in here:
                _put(x, row, chosen[row], donor[site, layer], parts.config.d_head)
            return x

        with visiting(parts, {patch.site for patch in chosen}, replace):
            value[batch] = pair.metric.of(run_batch(parts, pair.base, len(chosen)))
    return value


def _put(x_BPN: Tensor, row: int, patch: Patch, donor_PN: Tensor, d_head: int) -> None:
    place = slice(None) if patch.position < 0 else patch.position
    columns = slice(None) if patch.unit < 0 else slice(patch.unit * d_head, (patch.unit + 1) * d_head)
    x_BPN[row, place, columns] = donor_PN[place, columns]


def kept_activations(pair: Pair, ids: Tensor, sites: set[str]) -> dict[tuple[str, int], Tensor]:
    """Activations (P, ...) of a run by site and layer."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(site: str, layer: int, x: Tensor) -> None:
        kept[site, layer] = x[0].detach()

    with torch.no_grad(), visiting(pair.model.parts, sites, keep, pair.model.transcoders.feature_output_hook):
        run_batch(pair.model.parts, ids)
    return kept


def _features(pair: Pair, features: Features | int, layers: list[int] | None, places: list[int]) -> list[Patch]:
    if isinstance(features, int):
        if features < 0:
            raise InputError(f"features is {features}; give features, or how many of the strongest")
        if features == 0:
            return []
        from circuit_tracer.interventions.patching.attribution_patching import strongest_features

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
