"""Edits of features and heads as text: the options of `intervene` and `steer`, and what `patch` takes for features.

A feature is LAYER/FEATURE, with @PLACE behind it where it matters: 3/120, 3/120@6, 3/120@-1, 3/120@2:5, 3/120@all,
3/120@generated. Several are separated by commas; a supernode stands by its name. A head is L5H3, L5H3@6, L5H3@2:5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.interventions import Edit, HeadEdit, Supernode

_FEATURE = re.compile(r"(\d+)/(\d+)(?:@(.+))?")
_SLICE = re.compile(r"(-?\d*):(-?\d*)")


@dataclass(frozen=True)
class EditOptions:
    """What is changed, feature by feature."""

    set_to: Annotated[list[str] | None, typer.Option("--set", help="FEATURES=VALUE: activations become VALUE.")] = None
    scale: Annotated[list[str] | None, typer.Option("--scale", help="FEATURES=FACTOR: activations times FACTOR.")] = (
        None
    )
    ablate: Annotated[list[str] | None, typer.Option("--ablate", help="FEATURES: activations become 0.")] = None
    add: Annotated[list[str] | None, typer.Option("--add", help="FEATURES=AMOUNT: AMOUNT is added.")] = None
    take: Annotated[
        list[str] | None, typer.Option("--take", help="FEATURES: activations as on the prompt named by --from.")
    ] = None
    source: Annotated[str | None, options.text("--from", help="The other prompt of --take.")] = None
    source_at: Annotated[
        int | None, typer.Option("--from-position", help="Position in the other prompt; default: the same one.")
    ] = None
    supernode: Annotated[
        list[str] | None, typer.Option("--supernode", help="NAME=FEATURES: a name for several features.")
    ] = None
    supernodes: Annotated[
        Path | None,
        typer.Option("--supernodes", help="Take the names from a viewer's graph file with saved supernodes."),
    ] = None

    def read(self) -> list[Edit]:
        """The edits. Raises InputError, quoting the text, for what cannot be read, and for half of --take and --from."""
        from circuit_tracer import interventions as do

        named = read_supernodes(self.supernode, self.supernodes)
        edits = [do.set_to(f, v, at) for text in self.set_to or () for f, at, v in _valued(text, named)]
        edits += [do.scale(f, v, at) for text in self.scale or () for f, at, v in _valued(text, named)]
        edits += [do.add(f, v, at) for text in self.add or () for f, at, v in _valued(text, named)]
        edits += [do.ablate(f, at) for text in self.ablate or () for f, at in read_features(text, named)]
        if bool(self.take) != (self.source is not None):
            raise InputError("--take FEATURES and --from PROMPT belong together; give both")
        taken = [each for text in self.take or () for each in read_features(text, named)]
        return edits + [do.take_from(feature, self.source or "", at, self.source_at) for feature, at in taken]


Heads = Annotated[
    list[str] | None,
    options.text(
        "--head",
        help="HEADS=ACTION: zero, mean, mean:TEXT (over that text), freeze (the pattern stays), patch:PROMPT (what the head "
        "gives there) or pattern:PROMPT (where it looks there).",
    ),
]


def read_heads(texts: Sequence[str] | None) -> list[HeadEdit]:
    """The edits of HEADS=ACTION. Raises InputError, quoting the text, for what cannot be read."""
    from circuit_tracer.interventions import HeadEdit
    from circuit_tracer.models.indices import parse_head

    found = []
    for text in texts or ():
        heads, equals, what = text.partition("=")
        action, colon, source = what.partition(":")
        if not equals or not action:
            raise InputError(f"--head {text!r}: write HEADS=ACTION, such as L5H3=zero or L5H3@6=patch:PROMPT")
        for item in (part.strip() for part in heads.split(",")):
            name, mark, place = item.partition("@")
            at = _place(place, item) if mark else None
            found.append(HeadEdit(*parse_head(name), action, at, source if colon else None))  # type: ignore[arg-type]
    return found


def read_supernodes(texts: Sequence[str] | None, file: Path | None = None) -> dict[str, Supernode]:
    """NAME=FEATURES, and those saved in a viewer's file, by name."""
    from circuit_tracer.interventions import FeatureAt, Supernode, saved_supernodes

    found = {} if file is None else saved_supernodes(file)
    for text in texts or ():
        name, equals, rest = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--supernode {text!r}: write NAME=FEATURES, such as Texas=1/45@6,2/77@6")
        features = []
        for feature, at in read_features(rest, found):
            if at is not None and not isinstance(at, int):
                raise InputError(f"--supernode {text!r}: a member's place must be one position")
            members = feature.features if isinstance(feature, Supernode) else (feature,)
            features += [FeatureAt(f.layer, f.position if at is None else at, f.feature_idx) for f in members]
        found[name.strip()] = Supernode(name.strip(), features)
    return found


def read_features(text: str, named: dict[str, Supernode]) -> list[tuple[Any, Any]]:
    """(feature or supernode, place or None) of each item of a comma-separated list."""
    from circuit_tracer.interventions import FeatureAt

    found: list[tuple[Any, Any]] = []
    for item in (part.strip() for part in text.split(",")):
        name, _, place = item.partition("@")
        match = _FEATURE.fullmatch(item)
        if name in named:
            found.append((named[name], _place(place, item) if place else None))
        elif match:
            layer, index, where = match.groups()
            found.append((FeatureAt(int(layer), None, int(index)), _place(where, item) if where else None))
        else:
            known = f", or a supernode ({', '.join(named)})" if named else ""
            raise InputError(
                f"{item!r} is no feature; write LAYER/FEATURE or LAYER/FEATURE@PLACE, such as 3/120@6{known}"
            )
    return found


def _valued(text: str, named: dict[str, Supernode]) -> list[tuple[Any, Any, float]]:
    features, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        equals = ""
    if not equals:
        raise InputError(f"{text!r}: write FEATURES=NUMBER, such as 3/120@6=2.5")
    return [(feature, at, value) for feature, at in read_features(features, named)]


def _place(text: str, item: str) -> int | slice | str:
    if text in ("all", "prompt", "generated"):
        return text
    match = _SLICE.fullmatch(text)
    if match:
        return slice(*(int(part) if part else None for part in match.groups()))
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{item!r}: place {text!r} is not understood; use a position, a range such as 2:5, all, prompt or generated"
        ) from error
