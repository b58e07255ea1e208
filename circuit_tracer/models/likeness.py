"""An architecture that is not in the table: which rows describe a model like it, and how near each of them comes.

Rows whose modules the model has are tried on it as if they were its own, by the verification that every model goes through
(`models/verify.py`). Nothing is traced by a row that was only guessed: what is found is said, with the line that registers it.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from enum import Enum
from typing import Any, NamedTuple

from torch import nn

from circuit_tracer.errors import UnsupportedModelError, first_line
from circuit_tracer.models.architecture import Architecture, LinearAttention, NormKind, has_part, part
from circuit_tracer.models.architectures import ARCHITECTURES, not_in_table
from circuit_tracer.models.parts import bind
from circuit_tracer.models.refused import REFUSED
from circuit_tracer.models.verify import DisagreementError, verify

_TRIED = 8  # rows, the likest first; each costs two passes of six tokens
_NAMED = 3  # in a message
_LAYER_PATHS = (
    "attention", "value", "value_up", "value_norm", "output", "mlp", "mlp_output", "attention_norm", "attention_post_norm",
    "mlp_norm", "mlp_post_norm",
)  # fmt: skip


class Likeness(NamedTuple):
    """A row, as of the model's model_type; what it names that is not there; else what verification says of it.

    error: relative; 0 if all agrees, None if the row does not run.
    """

    like: str
    row: Architecture
    missing: tuple[str, ...]
    said: str = ""
    error: float | None = None

    def __str__(self) -> str:
        lacks = "it has no " + ", ".join(self.missing[:_NAMED])
        return f"as {self.like!r}, {self.said or (lacks if self.missing else 'not tried')}"


def likenesses(model: Any) -> list[Likeness]:
    """Rows from the likest on; those whose modules are there have been tried. Of rows that say the same, the first."""
    found = [_compared(model, like, row) for like, row in _distinct(model).items()]
    there = sorted((each for each in found if not each.missing), key=lambda each: -_named(each.row))
    if not model.get_input_embeddings().weight.is_meta:
        there = [_tried(model, each) for each in there[:_TRIED]]
    there.sort(key=lambda each: float("inf") if each.error is None else each.error)
    return there + sorted((each for each in found if each.missing), key=lambda each: len(each.missing))


def unlike(model: Any) -> UnsupportedModelError:
    """The error for a model whose architecture is not in the table: what is known of it, or which row it is like."""
    said = not_in_table(model.config)
    if model.config.model_type in REFUSED:
        return UnsupportedModelError(said)
    found = likenesses(model)
    best = next((each for each in found if each.error == 0), None)
    if best is not None:
        return UnsupportedModelError(
            f"{said} All that is verified of this model agrees with the row of {best.like!r}. To trace it, run this first: "
            f"{code(best.row)}"
        )
    near = "; ".join(str(each) for each in found[:_NAMED])
    return UnsupportedModelError(f"{said} No row describes it as it is. Nearest: {near}.")


def code(row: Architecture) -> str:
    """The line that registers a row."""
    return f"import circuit_tracer as ct; ct.register_architecture({_literal(row)})"


def _literal(value: Any) -> str:
    """As it is written; of a row or what is within it, the fields that say something."""
    if isinstance(value, Enum):
        return f"ct.{type(value).__name__}.{value.name}"
    if not isinstance(value, Architecture | LinearAttention):
        return repr(value)
    said = [(each, getattr(value, each.name)) for each in fields(value)]
    given = [
        _literal(found) if each.default is MISSING else f"{each.name}={_literal(found)}"
        for each, found in said
        if found != each.default
    ]
    return f"ct.{type(value).__name__}({', '.join(given)})"


def _distinct(model: Any) -> dict[str, Architecture]:
    """Rows of the table as rows of this model, by the model_type whose row each is."""
    home = type(model).__module__
    package = Architecture("", NormKind.RMS).package
    own = package if home.startswith(package) else home.partition(".")[0]
    rows: dict[Architecture, str] = {}
    for like, row in ARCHITECTURES.items():
        rows.setdefault(replace(row, model_type=model.config.model_type, package=own), like)
    return {like: row for row, like in rows.items()}


def _compared(model: Any, like: str, row: Architecture) -> Likeness:
    """What of a row the model, its first layer or its configuration lacks."""
    keys = [getattr(row, field.name) for field in fields(row) if field.name.endswith(("_key", "_flag"))]
    missing = [f"{key} in its configuration" for key in keys if key and not hasattr(model.config, key)]
    paths = [row.layers, row.final_norm, row.position_embedding, row.embedding_norm]
    missing += [path for path in paths if path and not has_part(model, path)]
    within = [path for name in _LAYER_PATHS if (path := getattr(row, name)) is not None]
    within += [] if row.linear is None else [row.linear.module]
    first: Any = (
        next(part(model, row.layers).children(), nn.Identity()) if has_part(model, row.layers) else nn.Identity()
    )
    missing += [path if isinstance(path, str) else path[0] for path in within if not has_part(first, path)]
    return Likeness(like, row, tuple(missing))


def _named(row: Architecture) -> int:
    """How many modules of a layer a row names: of rows that fit, one that names more is likelier to be whole."""
    return sum(getattr(row, name) is not None for name in _LAYER_PATHS)


def _tried(model: Any, one: Likeness) -> Likeness:
    try:
        verify(bind(model, model.config.model_type, one.row))
    except DisagreementError as error:
        return one._replace(said=f"{error.what} differs by {error.error:.1e}", error=error.error)
    except Exception as error:  # a row that is not this model's: anything may go wrong
        return one._replace(said=first_line(error))
    return one._replace(error=0.0)
