"""What to do with which head of attention: take it out, keep it still, or take what it does from another prompt.

    edits = [HeadEdit(5, 3, "zero"), HeadEdit(5, 4, "patch", at=-1, source="The capital of France is")]

| action | what the head gives (z, before the output projection) | where it looks (its pattern, rows = queries) |
|---|---|---|
| zero | 0 | |
| mean | the mean over this prompt's positions, or over those of `source` | |
| patch | as on the prompt `source` at the same position, or `value` | |
| pattern | | as on the prompt `source` at the same position, or `value` |
| freeze | | as on the clean prompt, whatever else reacts |

What is blank follows from the rest of the pass: with another pattern a head gives other values. Head edits go with edits of
features in one call of `apply_edits`. Letters: P positions, d d_head, n positions of an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.interventions.features.edits import Positions, place_text, plain_place
from circuit_tracer.models.tokenization import Prompt

Action = Literal["zero", "mean", "patch", "pattern", "freeze"]
Site = Literal["attn.hook_z", "attn.hook_pattern"]
ACTIONS: tuple[Action, ...] = get_args(Action)
TAKES: tuple[Action, ...] = ("patch", "pattern")  # from a prompt, or values


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """One change of one head.

    Attributes:
        layer: Of the head.
        head: Its number.
        action: "zero"; "mean" over a prompt's positions; "patch" from another prompt; "pattern": where it looks;
            "freeze": its pattern as on the clean prompt.
        at: Queries: a position (negative: from the end), several, a slice, "prompt" (all but those that attribution
            leaves out), or None: every one; of "mean", those that the mean is of, which are "prompt".
        source: Another prompt (text or ids); for "mean" one or several, whose positions are taken together.
        value: Instead of a source, (n, d) for "patch" and (n, P) for "pattern", for the n positions of the edit, or one
            row for all of them.
    """

    layer: int
    head: int
    action: Action
    at: Positions = None
    source: Prompt | Sequence[Prompt] | None = None
    value: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("layer", "head"):
            object.__setattr__(self, name, whole(getattr(self, name), f"the {name} of a head's edit"))
        if self.action not in ACTIONS:
            raise InputError(f"a head's action is {shortened(self.action)}; use {', '.join(ACTIONS)}")
        object.__setattr__(self, "at", plain_place(self.at))
        if self.source is not None and not isinstance(self.source, str | Tensor | Sequence):
            raise InputError(f"{self}: the source is {shortened(self.source)}; give text, or a row of token ids")
        given = (self.source is not None) + (self.value is not None)
        if self.action in TAKES and given != 1:
            raise InputError(f"{self}: give the other prompt (source), or what to put there (value), and not both")
        if self.action == "mean" and self.value is not None:
            raise InputError(f"{self}: a value is put there by action 'patch'; 'mean' takes reference prompts (source)")
        if self.action in ("zero", "freeze") and given:
            raise InputError(f"{self}: action {self.action!r} takes neither a source nor a value; leave them out")
        object.__setattr__(self, "value", None if self.value is None else _values(self.value, str(self)))

    @property
    def site(self) -> Site:
        """What is changed."""
        return "attn.hook_pattern" if self.action in ("pattern", "freeze") else "attn.hook_z"

    @property
    def sources(self) -> tuple[Prompt, ...]:
        """The other prompts, none or several."""
        if self.source is None:
            return ()
        listed = self.action == "mean" and not isinstance(self.source, str | Tensor)
        if listed and any(_is_prompt(each) for each in self.source):
            return tuple(cast("Sequence[Prompt]", self.source))
        return (cast("Prompt", self.source),)

    def __str__(self) -> str:
        words = {
            "zero": "set to 0",
            "mean": "set to its mean" + ("" if self.source is None else " over reference prompts"),
            "patch": "taken from another prompt" if self.value is None else "replaced",
            "pattern": "with the pattern " + ("of another prompt" if self.value is None else "replaced"),
            "freeze": "with its pattern held",
        }
        return f"L{self.layer}H{self.head}{place_text(self.at)} {words[self.action]}"


def _is_prompt(each: Any) -> bool:
    return isinstance(each, str | Sequence) or (isinstance(each, Tensor) and each.ndim > 0)


def _values(given: Any, what: str) -> Tensor:
    try:
        value = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{what}: the value is {shortened(given)}; give a tensor of numbers") from error
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise InputError(f"{what}: the value must be finite floating point numbers, found {shortened(given)}")
    return value
