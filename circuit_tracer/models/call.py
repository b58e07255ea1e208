"""What a module is called with."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """What a module is called with; the first argument, or `hidden_states`, is the activation."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """The activation."""
        given: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return given

    def on(self, hidden: Any) -> Call:
        """The same call on another activation."""
        args, kwargs = self
        return Call((hidden, *args[1:]), kwargs) if args else Call(args, {**kwargs, "hidden_states": hidden})
