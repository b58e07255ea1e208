"""From edits of heads to what is written where, and every way in which that can be impossible.

Letters: H heads, P positions, d d_head, n positions of an edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.resolve import positions_at
from circuit_tracer.interventions.heads.edits import HeadEdit, Site
from circuit_tracer.models.capture import check_length
from circuit_tracer.models.indices import require_head
from circuit_tracer.models.run import ModelRun, Place, Visit

Key = tuple[int, ...]  # ids of a prompt


@dataclass(frozen=True)
class HeadChange:
    """What one head gives, or where it looks, at n queries: value (n, d) or (n, P). moves: whether that is anything new."""

    edit: HeadEdit
    positions: Tensor
    value: Tensor
    moves: bool

    @property
    def place(self) -> tuple[Site, int]:
        """Site and layer."""
        return self.edit.site, self.edit.layer


def resolve_heads(
    experiments: Sequence[Sequence[HeadEdit]], clean: CleanRun, freeze_attention: bool
) -> list[tuple[HeadChange, ...]]:
    """Changes of each experiment. Costs a pass over the clean prompt, and one over each other prompt.

    Raises InputError for a layer, head or position that does not exist, two edits of one head at one position, a pattern
    that is held although all are, another prompt that is too short, and values of another shape.
    """
    reached = [[(edit, _positions(edit, clean, freeze_attention)) for edit in edits] for edits in experiments]
    for each in reached:
        _require_once(each)
    readings = _Readings(clean, [edit for edits in experiments for edit in edits])
    return [tuple(_change(edit, positions, readings) for edit, positions in each) for each in reached]


def _positions(edit: HeadEdit, clean: CleanRun, freeze_attention: bool) -> list[int]:
    config = clean.model.parts.config
    require_head(edit.layer, edit.head, config.n_layers, config.n_heads)
    if edit.action == "freeze" and freeze_attention:
        raise InputError(
            f"{edit}: all patterns are held in this intervention. Let attention react (freeze_attention=False, "
            "--live-attention), or leave the edit out"
        )
    if edit.at is None and edit.action != "mean":
        return list(range(clean.n_pos))
    positions = positions_at(edit.at, clean, f"edit of head L{edit.layer}H{edit.head}")
    if not positions:
        raise InputError(f"{edit} reaches no position of this prompt of {clean.n_pos} tokens (at={edit.at!r})")
    return positions


def _require_once(reached: Iterable[tuple[HeadEdit, list[int]]]) -> None:
    """Refuse two edits of one head at one position: which of them holds would depend on their order."""
    seen: dict[tuple[int, int, int], HeadEdit] = {}
    for edit, positions in reached:
        for position in positions:
            place = (edit.layer, edit.head, position)
            if place in seen:
                raise InputError(
                    f"two edits of head L{edit.layer}H{edit.head} at position {position}: {seen[place]}, and {edit}; keep one"
                )
            seen[place] = edit


class _Readings:
    """What heads do on the clean prompt and on the others; each is run once for all edits."""

    def __init__(self, clean: CleanRun, edits: Sequence[HeadEdit]) -> None:
        self.clean, self.own = clean, _key(clean.ids)
        self.left_out: dict[Key, list[int]] = {self.own: clean.left_out}
        self.sources: dict[int, list[Key]] = {}  # of each edit, by identity
        wanted: dict[Key, set[Place]] = {}
        for edit in edits:
            if edit.action == "freeze" or (edit.action == "mean" and not edit.sources):
                keys = [self.own]
            else:
                keys = [self._prompt(source) for source in edit.sources]
            self.sources[id(edit)] = keys
            for key in {*keys, self.own}:
                wanted.setdefault(key, set()).add((edit.site, edit.layer))
        heads = {(edit.layer, edit.head) for edit in edits}
        self._found = {key: _run(clean, key, places, heads) for key, places in wanted.items()}

    def of(self, key: Key, edit: HeadEdit) -> Tensor:
        """(P, d) or (P, P) of the edit's head on a prompt."""
        return self._found[key][edit.site, edit.layer, edit.head]

    def _prompt(self, source: object) -> Key:
        ids = self.clean.model.ensure_tokenized(source)  # type: ignore[arg-type]
        if not len(ids):
            raise InputError("another prompt of a head's edit is empty; give at least one token")
        check_length(self.clean.model.parts, ids)
        key = _key(ids)
        self.left_out.setdefault(key, self.clean.model.left_out(ids))
        return key


def _key(ids: Tensor) -> Key:
    return tuple(ids.tolist())


def _run(
    clean: CleanRun, key: Key, places: set[Place], heads: set[tuple[int, int]]
) -> dict[tuple[str, int, int], Tensor]:
    """(site, layer, head) -> (P, d) or (P, P), of a live pass; only chosen heads are kept."""
    found: dict[tuple[str, int, int], Tensor] = {}
    n_heads = clean.model.parts.config.n_heads

    def keep(site: str) -> Visit:
        def visit(layer: int, activation: Tensor) -> None:
            each = activation[0] if site == "attn.hook_pattern" else by_head(activation, n_heads)[0].transpose(0, 1)
            for depth, head in heads:
                if depth == layer:
                    found[site, layer, head] = each[head].clone()

        return visit

    ModelRun(clean.model.parts, {(site, layer): keep(site) for site, layer in places})(
        torch.tensor(key, dtype=torch.int64)
    )
    return found


def by_head(z_BPN: Tensor, n_heads: int) -> Tensor:
    """Outputs of heads side by side (B, P, H * d) as a view (B, P, H, d)."""
    split: Tensor = z_BPN.unflatten(-1, (n_heads, -1))
    return split


def _change(edit: HeadEdit, positions: list[int], readings: _Readings) -> HeadChange:
    clean = readings.of(readings.own, edit)[positions]
    if edit.action == "zero":
        value = torch.zeros_like(clean)
    elif edit.action == "mean":
        value = _mean(edit, readings).expand_as(clean)
    elif edit.value is not None:
        value = _given(edit, positions, clean)
    else:
        value = _taken(edit, positions, clean, readings)
    where = torch.tensor(positions, device=clean.device)
    return HeadChange(edit, where, value, moves=not torch.equal(value, clean))


def _mean(edit: HeadEdit, readings: _Readings) -> Tensor:
    """(d,) over all positions of the edit's prompts but those that attribution leaves out; in float32 at least."""
    rows = []
    for key in readings.sources[id(edit)]:
        z_Pd = readings.of(key, edit)
        rows += [z_Pd[position] for position in range(len(key)) if position not in readings.left_out[key]]
    if not rows:
        raise InputError(
            f"{edit}: the prompt has no token but the first, and no mean is taken of that one; lengthen it"
        )
    every = torch.stack(rows)
    if len(every) == 1:
        return every[0]
    return every.to(readings.clean.model.parts.compute_dtype).mean(0).to(every.dtype)


def _taken(edit: HeadEdit, positions: list[int], clean: Tensor, readings: _Readings) -> Tensor:
    """(n, d) or (n, P) at the same positions of the other prompt; what a query sees of a pattern ends at the query."""
    (key,) = readings.sources[id(edit)]
    if positions[-1] >= len(key):
        raise InputError(
            f"{edit}: position {positions[-1]} is outside the other prompt's {len(key)} tokens; name positions that both "
            "prompts have (at), or reword one"
        )
    taken = readings.of(key, edit)[positions]
    if edit.site == "attn.hook_z":
        return taken
    value, seen = torch.zeros_like(clean), min(clean.shape[1], taken.shape[1])
    value[:, :seen] = taken[:, :seen]
    return value


def _given(edit: HeadEdit, positions: list[int], clean: Tensor) -> Tensor:
    assert edit.value is not None
    value = edit.value.to(clean)
    if value.ndim not in (1, 2) or value.shape not in (clean.shape, clean.shape[1:], (1, clean.shape[1])):
        raise InputError(
            f"{edit}: the value has shape {tuple(value.shape)}; expected {tuple(clean.shape)}, or {tuple(clean.shape[1:])} for "
            "every position"
        )
    value = value.expand_as(clean)
    if not torch.isfinite(value).all():
        raise InputError(f"{edit}: the value is not finite in {str(clean.dtype).removeprefix('torch.')}")
    if edit.site == "attn.hook_pattern":
        _require_causal(edit, positions, value)
    return value


def _require_causal(edit: HeadEdit, positions: list[int], pattern_nP: Tensor) -> None:
    for position, row in zip(positions, pattern_nP, strict=True):
        if row[position + 1 :].any():
            later = position + 1 + int(row[position + 1 :].nonzero()[0])
            raise InputError(
                f"{edit}: at query {position} the value has weight on key {later}, which comes later; set it to 0"
            )
