"""Arguments of public functions, checked by their annotations before any work is done.

    @typed
    def attribute(prompt: Prompt, model: Traceable, *, batch_size: int = 512, ...) -> Graph: ...

Whole numbers may be of any type that counts as one (numpy's, tensors of one element), and so may numbers, which must be
finite; both arrive as Python's own. Of containers only the container is checked, not what is in it.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import numpy as np

from circuit_tracer.errors import InputError, shortened

Subject = TypeVar("Subject", bound=Callable[..., Any])
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMES: dict[type, str] = {
    str: "text", type(None): "None", tuple: "a tuple", Sequence: "a list", Iterable: "a list", Mapping: "a dictionary",
}  # fmt: skip
_LISTS = (Sequence, Iterable)


def typed(subject: Subject) -> Subject:
    """A function, or a dataclass, whose arguments are checked: InputError names one, its value and what is expected."""
    names, found = vars(sys.modules[subject.__module__]), cast("Any", subject)
    if is_dataclass(subject):
        found.__init__ = _checked(found.__init__, names)
        return subject
    return cast("Subject", _checked(subject, names))


def whole(value: Any, name: str) -> int:
    """A whole number as Python's int; InputError for anything else, True and False included."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except (TypeError, RuntimeError, ValueError):
        pass
    raise InputError(f"{name} is {shortened(value)}; expected a whole number")


def number(value: Any, name: str) -> float:
    """A finite number as Python's float; InputError for anything else."""
    try:
        if not isinstance(value, bool | str | bytes) and abs(found := float(value)) < float("inf"):
            return found
    except (TypeError, RuntimeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} is {shortened(value)}; expected a finite number")


def require_seed(seed: int) -> None:
    """Refuse a seed that random generators do not take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; give one from 0 to 2**63 - 1")


class _Expected(NamedTuple):
    """What an annotation allows."""

    classes: tuple[type, ...]
    words: tuple[Any, ...]  # of Literals
    flag: bool
    whole: bool
    number: bool

    def take(self, value: Any, name: str) -> Any:
        text, single = isinstance(value, str | bytes), getattr(value, "ndim", 1) == 0
        # a text is no list of letters, and a tensor of one number no list
        named = tuple(each for each in self.classes if not (text or single) or each not in _LISTS)
        if isinstance(value, named):
            return value
        if text and value in self.words:
            return value
        if self.flag and isinstance(value, bool | np.bool_):
            return bool(value)
        for allowed, convert in ((self.whole, whole), (self.number, number)):
            try:
                if allowed:
                    return convert(value, name)
            except InputError:
                continue
        raise InputError(f"{name} is {shortened(value)}; expected {self}")

    def __str__(self) -> str:
        kinds = [_NAMES.get(each, each.__name__) for each in self.classes]
        kinds = [*(["True or False"] if self.flag else []), *kinds]
        kinds = [*(["a whole number"] if self.whole else []), *(["a finite number"] if self.number else []), *kinds]
        return " or ".join([*map(repr, self.words), *kinds])


def _checked(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.cache  # annotations may name what is imported later
    def expected() -> dict[str, _Expected]:
        named = {name: each for name, each in signature.parameters.items() if each.kind not in _SEVERAL}
        found = {name: _expected(each.annotation, names) for name, each in named.items()}
        return {name: each for name, each in found.items() if each is not None}

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None  # as Python says it
        try:
            for name, value in bound.arguments.items():
                if name in expected() and value is not signature.parameters[name].default:
                    bound.arguments[name] = expected()[name].take(value, name)
        except InputError as error:
            raise InputError(f"{error}{_order(bound.arguments, expected())}") from None
        return function(*bound.args, **bound.kwargs)

    return called


def _order(given: dict[str, Any], expected: dict[str, _Expected]) -> str:
    """A hint, if the first two arguments were given in each other's place."""
    names = list(given)[:2]
    if len(names) < 2 or not all(name in expected for name in names):
        return ""
    first, second = names
    try:
        expected[first].take(given[second], first)
        expected[second].take(given[first], second)
    except InputError:
        return ""
    return f". The order is {first}, {second}"


def _expected(annotation: Any, names: dict[str, Any]) -> _Expected | None:
    """None where nothing is asked: no annotation, Any, or names that exist for type checkers alone."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # the module's own text
        except NameError:
            return None
    kinds = list(_alternatives(annotation))
    plain = [kind for kind in kinds if kind in (bool, int, float)]
    classes = [get_origin(kind) or kind for kind in kinds if kind not in plain and get_origin(kind) is not Literal]
    if annotation is inspect.Parameter.empty or Any in kinds or not all(isinstance(each, type) for each in classes):
        return None
    words = tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))
    return _Expected(tuple(classes), words, bool in plain, int in plain, float in plain)


def _alternatives(annotation: Any) -> Iterable[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation
