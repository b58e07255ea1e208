"""Modules under watch: what a run does before, instead of or after a module, while other threads call that module too.

torch keeps a module's hooks in dictionaries, which it goes through in a loop of Python's whenever an exception passes by. A
run that registers or removes a hook meanwhile, in another thread, makes torch raise in place of that exception. So no hook of
ours is ever in there. A watched module has a `_Watched` in the place where torch looks for a compiled call (`Module.compile`):
it is put there in one assignment, its hooks are a tuple that is replaced and never changed, and it goes with the last of them.
torch leaves that place out where a module is copied or saved, and does not look at it when it compiles a whole model, which a
forward method of the module's own would make it do again. Hooks of others are around ours: they see what ours make.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn

from circuit_tracer.models.whose import Holder, owns


class When(Enum):
    """What a hook does, and is called with: (args, kwargs), AFTER the module with its output too."""

    BEFORE = "returns the (args, kwargs) that the module is called with, or None"
    INSTEAD = "returns what the module gives; the module is not called"
    AFTER = "returns what the module gives, or None"


@dataclass(eq=False)
class Hook:
    """holder: the run for whose passes it is; None: for all that are made meanwhile. live: until its run is over."""

    holder: Holder | None
    module: nn.Module
    when: When
    call: Callable[..., Any]
    live: bool = True

    def concerns_this_pass(self) -> bool:
        """Whether the code that asks is a pass that the hook is for."""
        return self.live and (self.holder is None or owns(self.holder))


@contextmanager
def watched(hooks: Sequence[Hook]) -> Iterator[None]:
    """Inside the block, these are called, those of one module in this order, behind those that it has already."""
    try:
        for hook in hooks:
            _attach(hook)
        yield
    finally:
        for hook in hooks:
            hook.live = False
        for hook in hooks:
            _tidy(hook.module)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has taken this module (`module.compile()`), under watch or not."""
    found = module._compiled_call_impl
    return (found.beneath if isinstance(found, _Watched) else found) is not None


class _Watched:
    """What torch calls in place of a module's `_call_impl`. beneath: what was there before, if anything."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.beneath: Callable[..., Any] | None = module._compiled_call_impl
        self.hooks: tuple[Hook, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        call: Callable[..., Any] = self.beneath or module._call_impl
        if torch.compiler.is_dynamo_compiling():  # what is compiled are passes of others
            return call(*args, **kwargs)
        hooks = [hook for hook in self.hooks if hook.concerns_this_pass()]
        if not hooks:
            return call(*args, **kwargs)
        if module._forward_hooks or module._forward_pre_hooks:
            return _stand_in(module, partial(_through, hooks, module.forward))._call_impl(*args, **kwargs)
        return _through(hooks, call, *args, **kwargs)


def _through(hooks: Sequence[Hook], module: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What a module gives with hooks."""
    for hook in hooks:
        if hook.when is When.BEFORE:
            args, kwargs = hook.call(args, kwargs) or (args, kwargs)
    instead = next((hook for hook in hooks if hook.when is When.INSTEAD), None)
    output = module(*args, **kwargs) if instead is None else instead.call(args, kwargs)
    for hook in hooks:
        if hook.when is When.AFTER and hook.concerns_this_pass():  # its run may be over by now
            new = hook.call(args, kwargs, output)
            output = output if new is None else new
    return output


def _stand_in(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The module with another forward method, for one call, in which torch calls the hooks of others with the module itself."""
    own = copy.copy(module)
    vars(own)["forward"] = forward
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        vars(own)[name] = {key: partial(_called_with, module, hook) for key, hook in vars(module)[name].copy().items()}
    return own


def _called_with(module: nn.Module, hook: Callable[..., Any], _: nn.Module, *given: Any) -> Any:
    return hook(module, *given)


_PLACE = "_compiled_call_impl"
# Garbage collection may close a generator that holds a run while this thread is in here: such a one must not wait for itself,
# and what is done here must be right whatever it takes away in between.
_changing = threading.RLock()


def _attach(hook: Hook) -> None:
    place = vars(hook.module)
    with _changing:
        found = place.get(_PLACE)
        own = found if isinstance(found, _Watched) else _Watched(hook.module)
        own.hooks = (*own.hooks, hook)
        place[_PLACE] = own


def _tidy(module: nn.Module) -> None:
    """Drop hooks whose run is over, and the watch with the last of them."""
    place = vars(module)
    with _changing:
        own = place.get(_PLACE)
        if not isinstance(own, _Watched):
            return
        while not all(hook.live for hook in own.hooks):
            own.hooks = tuple(hook for hook in own.hooks if hook.live)
        if not own.hooks and own.beneath is None:
            place.pop(_PLACE, None)
        elif not own.hooks:
            place[_PLACE] = own.beneath
