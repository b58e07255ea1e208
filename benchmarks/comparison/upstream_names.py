"""Every public name of circuit-tracer 0.5.0 (the one on PyPI): the same here, adapted, or absent, and why.

The names are those in benchmarks/peer/circuit_tracer_0.5.0.json, which benchmarks/peer/names.py read off its sources.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

LIST = Path(__file__).parents[1] / "peer" / "circuit_tracer_0.5.0.json"
VERSION = "0.5.0 of PyPI"
MODEL = r"replacement_model\.replacement_model_(nnsight|transformerlens)\.\w+ReplacementModel"

CONTEXT = r"attribution\.context_(nnsight|transformerlens)\.AttributionContext"

# Pattern of names -> why there is nothing of that name here.
ABSENT = {
    r".*\.logger": "modules here log nothing",
    rf"{CONTEXT}\.(cache_residual|compute_(score|\w+_attributions)|install_hooks)": (
        "steps of a backward pass, and hooks for it; rows are computed by hand-written adjoints, all at once (compute_batch)"
    ),
    r"frontend\.local_server\.(DEFAULT_\w+|COMPRESSION_\w+|ListHandler|ReusableTCPServer|CircuitGraphHandler)": (
        "parts of its web server; ours is another (serve and Server are here)"
    ),
    rf"{MODEL}\.(run_forward_pass|get_offload_targets_phase\d)": "steps of its attribution loop",
    rf"{MODEL}\.(configure_\w+|get_activation_fn|get_feature_\w+_loc|\w+_locs?|\w+_location|d_transcoder)": (
        "places of nnsight; models/sites.py has ours"
    ),
    r"replacement_model\.replacement_model_nnsight\.EnvoyWrapper": "nnsight",
    r"replacement_model\.replacement_model_transformerlens\.Replacement(MLP|Unembed)": (
        "modules put into TransformerLens' models; our hooks touch no module (unembed.W_U and b_U are here)"
    ),
    r"transcoder\.activation_functions\.(rectangle|jumprelu)": (
        "the straight-through gradient, for training; training/sparsity/jumprelu.py has ours"
    ),
    r"utils\.tl_nnsight_mapping\.(ModelMapping|TransformerLens_NNSight_Mapping|get_\w+)(\..*)?": (
        "places of nnsight by architecture; models/architectures.py has ours"
    ),
}
# Pattern of names -> what is otherwise here.
ADAPTED = {
    r"frontend\.local_server\.Server\.__init__": "made by serve alone",
    r"frontend\.local_server\.serve": "features_dir comes before port, as in the tag v0.5.0",
    rf"{MODEL}\.from_pretrained(_and_transcoders)?": "one class for all backends: `backend` comes before `device`",
    r"transcoder\.activation_functions\.(JumpReLU|TopK)\.forward": "the argument is called pre",
}

Verdict = Literal["same", "adapted", "absent"]


class Name(NamedTuple):
    """A name without the package in front, its verdict, and why if it is not the same."""

    name: str
    verdict: Verdict
    why: str = ""


class Fault(NamedTuple):
    """A name that no row of the tables excuses."""

    name: str
    what: str


def compare(instances: dict[str, Any], options: set[str]) -> tuple[list[Name], list[Fault]]:
    """Look up every name. instances: by class name, where attributes exist on instances only. options: of our command line."""
    found: list[Name] = []
    faults: list[Fault] = []
    for name, what in _looked_up(instances, options):
        if what is None:
            found.append(Name(name, "same"))
        elif why := _excuse(name, ABSENT) if what == "missing" else _excuse(name, ADAPTED):
            found.append(Name(name, "absent" if what == "missing" else "adapted", why))
        else:
            faults.append(Fault(name, what))
    return found, faults


def idle_rows(found: list[Name]) -> list[str]:
    """Rows of the tables that excuse nothing any more."""
    excused = [each.name for each in found if each.verdict != "same"]
    return [row for row in (*ABSENT, *ADAPTED) if not any(re.fullmatch(row, name) for name in excused)]


def _looked_up(instances: dict[str, Any], options: set[str]) -> Iterator[tuple[str, str | None]]:
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    for option in listed.pop("command line"):
        yield f"command line.{option}", None if option in options or not option.startswith("-") else "missing"
    for module, names in listed.items():
        short = module.removeprefix("circuit_tracer").removeprefix(".")
        home = importlib.import_module(module)
        for name, theirs in names.items():
            full = f"{short}.{name}".lstrip(".")
            if not hasattr(home, name):
                yield full, "missing"
                continue
            ours = getattr(home, name)
            yield full, None if isinstance(theirs, dict) else _signature(ours, theirs)
            for member, parameters in (theirs if isinstance(theirs, dict) else {}).items():
                yield f"{full}.{member}", _member(ours, instances.get(ours.__name__), member, parameters)


def _member(cls: Any, instance: Any, member: str, parameters: list[str] | None) -> str | None:
    if member in getattr(cls, "model_fields", ()):
        return None
    owner = cls if hasattr(cls, member) else instance
    if owner is None or not hasattr(owner, member):
        return "missing"
    return _signature(getattr(owner, member), parameters)


def _signature(ours: Any, theirs: list[str] | None) -> str | None:
    """None if ours takes their parameters in their order."""
    if theirs is None or not callable(ours):
        return None
    taken = inspect.signature(ours).parameters
    names = [name for name in taken if name not in ("self", "cls")]
    anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    unknown = [name for name in theirs if name not in names]
    if unknown and not anything:
        return f"does not take {', '.join(unknown)}"
    known = [name for name in theirs if name in names]
    return (
        None if names[: len(known)] == known else f"takes {', '.join(names)} in another order than {', '.join(theirs)}"
    )


def _excuse(name: str, table: dict[str, str]) -> str | None:
    return next((why for row, why in table.items() if re.fullmatch(row, name)), None)
