"""Whose pass is this? A model belongs to all threads of a process, a run of it to the one that began it.

Hooks on a module are called in every pass, and a configuration is read in every pass, whoever makes it. So what a run changes
is asked for by context: `held_by(run)` makes the code inside the block (this thread, this asyncio task) the run's own, `owns`
says whether it is, and `config_value` is what the run's own passes find in the model's configuration, while all others find
what the user has set there. Nothing that others see is ever written. torch.compile cannot trace a context variable; what it
compiles are passes of others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(eq=False)
class Holder:
    """A run that is under way, or another change to a model that only its own context sees.

    values: by name, what attributes of the model's configurations are to it. tape: what its attention records or replays
    (`models/attention.py`).
    """

    model: Any
    values: Mapping[str, Any] = field(default_factory=dict)
    tape: Any = None
    live: bool = True
    configs: frozenset[int] = field(init=False)  # of the model and of its parts, by identity

    def __post_init__(self) -> None:
        found = {id(config): config for module in self.model.modules() if (config := vars(module).get("config"))}
        self.configs = frozenset(found)
        for config in found.values():
            for name in self.values:
                if hasattr(config, name):
                    _let_contexts_differ(type(config), name)


_holders: ContextVar[tuple[Holder, ...]] = ContextVar("circuit_tracer_holders", default=())


@contextmanager
def held_by(holder: Holder) -> Iterator[None]:
    """Inside the block, passes are the holder's, beside those of any that hold the model already."""
    _holders.set((*_holders.get(), holder))
    try:
        yield
    finally:
        holder.live = False  # for contexts that were copied from this one, and outlive the block
        _holders.set(tuple(each for each in _holders.get() if each is not holder))


def owns(holder: Holder) -> bool:
    """Whether the code that asks, which is not being compiled, is the holder's."""
    return holder.live and holder in _holders.get()


def tape_of(module: Any) -> Any:
    """What this pass of an attention module records or replays."""
    config = id(module.config)
    return next((each.tape for each in _here() if each.tape is not None and config in each.configs), None)


def config_value(config: Any, name: str, own: Any) -> Any:
    """The attribute of a configuration for the code that asks; `own` unless it is a holder's that wants another value."""
    if torch.compiler.is_dynamo_compiling():
        return own
    return next((each.values[name] for each in _here() if name in each.values and id(config) in each.configs), own)


def _here() -> Iterator[Holder]:
    """Holders of this context, the innermost first."""
    return (each for each in reversed(_holders.get()) if each.live)


_NOTHING = object()


class _ByContext:
    """An attribute of a configuration class, as it was, but for code that a holder has."""

    def __init__(self, name: str, own: Any) -> None:
        self.name = name
        self.own = own  # what the class had, a property or the default of a field; _NOTHING if neither

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None:
            return self.own
        ask = self.own.fget if isinstance(self.own, property) else None  # torch.compile knows no property.__get__
        value = vars(config).get(self.name, self.own) if ask is None else ask(config)
        if value is _NOTHING:
            raise AttributeError(f"{type(config).__name__!r} object has no attribute {self.name!r}")
        return config_value(config, self.name, value)

    def __set__(self, config: Any, value: Any) -> None:
        if isinstance(self.own, property):
            self.own.__set__(config, value)
        else:
            vars(config)[self.name] = value

    def __delete__(self, config: Any) -> None:
        del vars(config)[self.name]


_changing = threading.Lock()


def _let_contexts_differ(kind: type, name: str) -> None:
    """Make an attribute of a configuration class one that contexts can see differently; done once a class."""
    with _changing:
        owner = next((base for base in kind.__mro__ if name in vars(base)), kind)
        own = vars(owner).get(name, _NOTHING)
        if not isinstance(own, _ByContext):
            setattr(owner, name, _ByContext(name, own))
