"""Options that `intervene`, `steer` and `patch` share: the model, and edits of features as text.

A feature is LAYER/FEATURE, with @PLACE behind it where it matters: 3/120, 3/120@6, 3/120@-1, 3/120@2:5, 3/120@all,
3/120@generated. Several are separated by commas; a supernode stands by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.interventions import Edit, Supernode
    from circuit_tracer.replacement_model import ReplacementModel

Transcoders = Annotated[
    str | None, typer.Option("-t", "--transcoder-set", help="Transcoders: folder or Hugging Face id (or --demo).")
]
Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Language model; default: the one that the transcoders name.")
]
Demo = Annotated[bool, typer.Option("--demo", help="Use the small model and transcoder that ship with the package.")]
SetTo = Annotated[list[str] | None, typer.Option("--set", help="FEATURES=VALUE: activations become VALUE.")]
Scale = Annotated[list[str] | None, typer.Option("--scale", help="FEATURES=FACTOR: activations times FACTOR.")]
Ablate = Annotated[list[str] | None, typer.Option("--ablate", help="FEATURES: activations become 0.")]
Add = Annotated[list[str] | None, typer.Option("--add", help="FEATURES=AMOUNT: AMOUNT is added.")]
Take = Annotated[
    list[str] | None, typer.Option("--take", help="FEATURES: activations as on the prompt named by --from.")
]
From = Annotated[str | None, typer.Option("--from", help="The other prompt of --take.")]
FromPosition = Annotated[
    int | None, typer.Option("--from-position", help="Position in the other prompt; default: the same one.")
]
SupernodeOption = Annotated[
    list[str] | None, typer.Option("--supernode", help="NAME=FEATURES: a name for several features.")
]
SupernodeFile = Annotated[
    Path | None, typer.Option("--supernodes", help="Take the names from a viewer's graph file with saved supernodes.")
]

_FEATURE = re.compile(r"(\d+)/(\d+)(?:@(.+))?")
_SLICE = re.compile(r"(-?\d*):(-?\d*)")


def load_pair(
    transcoder_set: str | None,
    model: str | None,
    demo: bool,
    device: str | None,
    dtype: str,
    lazy_encoder: bool = False,
) -> ReplacementModel:
    """Model and transcoders; decoders stay on disk. InputError when neither or both of -t and --demo are given."""
    from circuit_tracer.cli import options
    from circuit_tracer.models.loading import resolve_dtype

    if demo != (transcoder_set is None):
        raise InputError(
            "name the transcoders with -t, or use --demo for the model that ships with the package (not both)"
        )
    options.quiet_loading()
    place, kind = options.place(device), resolve_dtype(dtype)
    if transcoder_set is None:
        from circuit_tracer.demo.show import load_demo

        return load_demo(dtype=kind)
    from circuit_tracer.replacement_model import ReplacementModel
    from circuit_tracer.transcoders.loading import load_transcoder_from_hub

    transcoders, config = load_transcoder_from_hub(transcoder_set, device=place, dtype=kind, lazy_encoder=lazy_encoder)
    name = model or config.get("model_name")
    if not name:
        raise InputError(f"the transcoders {transcoder_set} do not name their model; name it with -m")
    return ReplacementModel.from_pretrained_and_transcoders(name, transcoders, device=place, dtype=kind)


def read_edits(
    named: dict[str, Supernode],
    set_to: Sequence[str] | None,
    scale: Sequence[str] | None,
    ablate: Sequence[str] | None,
    add: Sequence[str] | None,
) -> list[Edit]:
    """The edits of a command line. Raises InputError, quoting the text, for what cannot be read."""
    from circuit_tracer import interventions as do

    edits = [do.set_to(f, v, at) for text in set_to or () for f, at, v in _valued(text, named)]
    edits += [do.scale(f, v, at) for text in scale or () for f, at, v in _valued(text, named)]
    edits += [do.add(f, v, at) for text in add or () for f, at, v in _valued(text, named)]
    edits += [do.ablate(f, at) for text in ablate or () for f, at in read_features(text, named)]
    return edits


def read_taken(
    named: dict[str, Supernode], take: Sequence[str] | None, source: str | None, source_at: int | None
) -> list[Edit]:
    """The edits of --take. Raises InputError without both --take and --from, or for what cannot be read."""
    from circuit_tracer.interventions import take_from

    if bool(take) != (source is not None):
        raise InputError("--take FEATURES and --from PROMPT belong together; give both")
    items = [item for text in take or () for item in read_features(text, named)]
    return [take_from(feature, source or "", at, source_at) for feature, at in items]


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
