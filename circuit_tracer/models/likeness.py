"""An architecture that is not in the table: which rows describe a model like it, and how near each of them comes.

Rows whose modules the model has are tried on it as if they were its own, by the verification that every model goes through
(`models/verify.py`). Nothing is traced by a row that was only guessed: what is found is said, with the line that registers it.
"""

from __future__ import annotations

from dataclasses import fields, replace
from enum import Enum
from typing import Any, NamedTuple

from torch import nn

from circuit_tracer.errors import UnsupportedModelError, first_line
from circuit_tracer.models.architectures import ARCHITECTURES, Architecture, NormKind, has_part, unknown
from circuit_tracer.models.parts import bind
from circuit_tracer.models.verify import DisagreementError, verify

_TRIED = 8  # rows, the likest first; each costs two passes of six tokens
_NAMED = 3  # in a message
_LAYER_PATHS = (
    "attention", "value", "value_up", "value_norm", "output", "mlp", "mlp_output", "attention_norm", "attention_post_norm",
    "mlp_norm", "mlp_post_norm",
)  # fmt: skip


class Likeness(NamedTuple):
    """A row, as of the model's model_type; the module it names that is not there; or what verification says of it.

    error: relative; 0 if all agrees, None if the row does not run.
    """

    like: str
    row: Architecture
    missing: str | None
    said: str = ""
    error: float | None = None


def likenesses(model: Any) -> list[Likeness]:
    """Rows from the likest on; those whose modules are there have been tried. Of rows that say the same, the first."""
    found = [_compared(model, like, row) for like, row in _distinct(model).items()]
    there = sorted((each for each in found if each.missing is None), key=lambda each: -_norms(each.row))
    if not model.get_input_embeddings().weight.is_meta:
        there = [_tried(model, each) for each in there[:_TRIED]]
    there.sort(key=lambda each: float("inf") if each.error is None else each.error)
    return there + [each for each in found if each.missing is not None]


def unlike(model: Any) -> UnsupportedModelError:
    """The error for a model whose architecture is not in the table."""
    known = unknown(model.config)
    if not isinstance(getattr(model, "config", None), object) or known.final:
        return UnsupportedModelError(known.said)
    found = likenesses(model)
    passed = [each for each in found if each.error == 0]
    if passed:
        best = passed[0]
        return UnsupportedModelError(
            f"{known.said} It agrees with the row of {best.like!r} in everything that is verified. To trace it, run this first: "
            f"{code(best.row)}"
        )
    said = [
        f"as {each.like!r}: {each.said or f'it has no {each.missing}'}"
        for each in [*(each for each in found if each.missing is None), *found[-1:]][:_NAMED]
    ]
    return UnsupportedModelError(f"{known.said} None of the rows describes it. Nearest, {'; '.join(said)}.")


def code(row: Architecture) -> str:
    """The line that registers a row."""
    given = [repr(row.model_type), _literal(row.norm)]
    for field in fields(row)[2:]:
        value = getattr(row, field.name)
        if value != field.default:
            given.append(f"{field.name}={_literal(value)}")
    return f"circuit_tracer.register_architecture(Architecture({', '.join(given)}))"


def _literal(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)


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
    paths = [row.layers, row.final_norm, row.position_embedding, row.embedding_norm]
    missing = next((path for path in paths if path and not has_part(model, path)), None)
    if missing is None:
        first: nn.Module = next(model.get_submodule(row.layers).children(), nn.Identity())
        wanted = [getattr(row, name) for name in _LAYER_PATHS]
        wanted += [] if row.linear is None else [row.linear.module]
        missing = next((str(path) for path in wanted if path and not has_part(first, path)), None)
    if missing is None:
        missing = next((f"{key} in its configuration" for key in keys if key and not hasattr(model.config, key)), None)
    return Likeness(like, row, missing)


def _norms(row: Architecture) -> int:
    """How many norms a row names: of rows that fit, one that names more is likelier to be whole."""
    return sum(getattr(row, name) is not None for name in _LAYER_PATHS)


def _tried(model: Any, one: Likeness) -> Likeness:
    try:
        verify(bind(model, model.config.model_type, one.row))
    except DisagreementError as error:
        return one._replace(said=f"{error.what} differs by {error.error:.1e}", error=error.error)
    except Exception as error:  # a row that is not this model's: anything may go wrong
        return one._replace(said=first_line(error))
    return one._replace(error=0.0)
