"""Two prompts of equal length to patch between, and the places that can be patched.

Letters: P positions, H heads, d d_head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.patching.metrics import Metric, logit_difference
from circuit_tracer.interventions.patching.table import Mode, PatchTable
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, Place, Visit, read
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt, token_strings

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

Site = Literal["resid", "attn_out", "mlp_out", "head"]
# what can be patched, in the order of a table: its short name here, and its site (models/sites.py)
SITES: dict[str, str] = {
    "resid": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "head": "attn.hook_z",
}
TOGETHER = -1  # a patch of all positions
MINIMUM = 1e-9  # the metrics of the two prompts must differ by more, relative to their size


class Patch(NamedTuple):
    """One activation to replace; site: a short name, or "feature"; position -1: all; unit: head or feature, -1 for neither."""

    site: str
    layer: int
    position: int
    unit: int

    def columns(self, d_head: int) -> slice:
        """The part of the activation's last dimension: a head's, or all of it."""
        return slice(None) if self.unit < 0 else slice(self.unit * d_head, (self.unit + 1) * d_head)

    @property
    def rows(self) -> slice | int:
        """The part of its positions."""
        return slice(None) if self.position < 0 else self.position


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


@plain_torch()
@torch.no_grad()
def pair_of(model: Traceable, clean: Prompt, corrupted: Prompt, metric: Metric | None, mode: Mode) -> Pair:
    """Check two prompts and run both. Raises InputError for prompts of different length, equal ones, or a metric that
    does not tell them apart. metric: None for the logit difference of the two prompts' answers.
    """
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
        logits.append(last_logits(model.parts, each))
    if metric is None:
        answers = [int(each.argmax()) for each in logits]
        if answers[0] == answers[1]:
            (text,) = token_strings(logits[0].argmax(-1), model.tokenizer)
            raise InputError(
                f"both prompts are answered with {text!r}; say what tells them apart: a metric such as "
                "logit_difference(model, token, other), or --answer TOKEN --instead OTHER"
            )
        metric = logit_difference(model, *answers)
    values = [float(metric.of(each)) for each in logits]
    if abs(values[0] - values[1]) <= MINIMUM * max(abs(values[0]), abs(values[1])):
        raise InputError(
            f"the {metric.label} is {values[0]:.6g} on both prompts; name a metric (--answer, --instead) that tells them apart"
        )
    base, donor = (1, 0) if mode == "denoising" else (0, 1)
    return Pair(model, ids[base], ids[donor], mode, metric, values[base], values[donor])


def places_of(pair: Pair, positions: Iterable[int] | Literal["together"] | None) -> list[int]:
    """Positions to patch, counted from 0; -1 for all of them at once. InputError for what does not exist."""
    n_pos = len(pair.base)
    if isinstance(positions, str):
        return [TOGETHER]
    places = list(range(n_pos)) if positions is None else [whole(position, "a position") for position in positions]
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
    chosen = list(range(config.n_layers)) if layers is None else [whole(layer, "a layer") for layer in layers]
    if chosen and not (min(chosen) >= 0 and max(chosen) < config.n_layers):
        raise InputError(f"layers {chosen} to patch: the model has layers 0 to {config.n_layers - 1}")
    patches = []
    for site in sites:
        if site not in SITES:
            raise InputError(f"site {site!r} is unknown; use {', '.join(SITES)}, and features=... for features")
        units = range(config.n_heads) if site == "head" else [-1]
        patches += [Patch(site, layer, place, unit) for layer in chosen for unit in units for place in places]
    return patches


def kept_activations(parts: ModelParts, ids: Tensor, sites: Iterable[str]) -> dict[Place, Tensor]:
    """Activations (P, ...) of a run at sites of every layer."""
    with torch.no_grad():
        found = read(parts, ids, [(site, layer) for site in sites for layer in range(parts.config.n_layers)])
    return {place: activation[0] for place, activation in found.items()}


def last_logits(parts: ModelParts, ids: Tensor, visits: Mapping[str, Visit] | None = None, **run: Any) -> Tensor:
    """Logits (B, V) at the last position of ids (P,), of a run with visits; `run`: as `ModelRun` is called."""
    return logits_at(parts, ModelRun(parts, visits)(ids, **run).final[:, -1])
