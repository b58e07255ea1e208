"""The keys of a configuration, read off its types: what each holds, in words, for files, messages and the command line."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from circuit_tracer.errors import InputError
from circuit_tracer.training.config.schema import DataPart, TrainingConfig

NOUNS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
PLURALS: dict[Any, str] = {
    int: "whole numbers",
    str: "texts",
    DataPart: "data sets, each {path: ..., weight: ...} and perhaps kind, field, name and split",
}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Key:
    """One value of the configuration."""

    section: str
    name: str
    type: Any  # bool, int, float, str, Path, a Literal, or a list of int, str or DataPart; never None
    optional: bool  # null is allowed
    required: bool
    default: Any
    bounds: str  # "at least 0 and at most 1", or nothing
    description: str

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, if they are few."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_text(self) -> bool:
        """Whether the value is text, which is never parsed."""
        return self.type in (str, Path) or bool(self.choices)

    @property
    def expected(self) -> str:
        """What the value must be, in words."""
        if self.choices:
            noun = "one of " + ", ".join(self.choices)
        elif get_origin(self.type) is list:
            noun = f"a list of {PLURALS[get_args(self.type)[0]]}"
        else:
            noun = NOUNS[self.type]
        return noun + (f", {self.bounds}" if self.bounds else "") + (", or null" if self.optional else "")

    @property
    def note(self) -> str:
        """What help adds to the description."""
        if self.required:
            return "[required]"
        shown = ", ".join(self.choices)
        default = self.default
        if isinstance(default, list):
            default = f"{len(default)} of them"
        elif default is None or isinstance(default, bool):
            default = {None: "null", True: "true", False: "false"}[default]
        return f"[{shown}; default: {default}]" if shown else f"[default: {default}]"


@cache
def keys() -> dict[str, Key]:
    """Every key by its dotted name, in the order of the file."""
    found = [
        _key(section, name, field)
        for section, model in sections().items()
        for name, field in model.model_fields.items()
    ]
    return {str(key): key for key in found}


def sections() -> dict[str, type[BaseModel]]:
    """The sections by name."""
    return {name: cast(type[BaseModel], field.annotation) for name, field in TrainingConfig.model_fields.items()}


def find(name: str) -> Key:
    """The key of a dotted name; InputError names the nearest one."""
    key = keys().get(name)
    if key is None:
        raise InputError(unknown(name))
    return key


def unknown(name: str) -> str:
    """The message about a key or section that does not exist."""
    guess = nearest(name)
    if guess is None:
        return f"unknown key {name}; circuit-tracer train --help lists all keys"
    if guess in sections():
        return f"unknown section {name}; did you mean {guess}?"
    return f"unknown key {name}; did you mean {guess}? ({keys()[guess].description})"


def nearest(name: str) -> str | None:
    """The key or section that an unknown name was probably meant to be: the same word elsewhere, or a close one."""
    last = name.split(".")[-1]
    same = [key for key in keys() if key.split(".")[1] == last]
    if same:
        return same[0]
    names: list[str] = [*keys(), *(sections() if "." not in name else ())]
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return close[0]
    words = {key.split(".")[1]: key for key in keys()}
    close = difflib.get_close_matches(last, words, n=1)
    return words[close[0]] if close else None


def _key(section: str, name: str, field: FieldInfo) -> Key:
    options = [_plain(option) for option in _alternatives(field.annotation)]
    kinds = [option for option in options if option is not type(None)]
    return Key(
        section=section,
        name=name,
        type=kinds[0],
        optional=len(kinds) < len(options),
        required=field.is_required(),
        default=field.default,
        bounds=" and ".join(_bounds(field.metadata)) if get_origin(kinds[0]) is not list else "",
        description=field.description or "",
    )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _plain(annotation: Any) -> Any:
    """The type without its constraints, inside a list too."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is list:
        return types.GenericAlias(list, (_plain(get_args(annotation)[0]),))
    return annotation


def _bounds(metadata: Iterable[Any]) -> list[str]:
    return [
        f"{word} {getattr(each, name)}" for each in metadata for name, word in BOUNDS.items() if hasattr(each, name)
    ]
