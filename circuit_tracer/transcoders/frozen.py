"""Modules whose tensors are frozen parameters that can be assigned like plain attributes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from circuit_tracer.errors import InputError


class FrozenModule(nn.Module):
    """A torch module (so `.to`, `state_dict` and `parameters` work) that a trace never trains.

    Assigning a tensor to the name of a parameter replaces it, device and dtype included, when the shape agrees;
    torch's own modules refuse that. Parameters do not require gradients until `requires_grad_()` is called.
    """

    def set_frozen(self, name: str, value: Tensor | None) -> None:
        """Register or replace parameter ``name`` whatever its former shape."""
        frozen = None if value is None else nn.Parameter(value.detach(), requires_grad=False)
        self.register_parameter(name, frozen)

    def __setattr__(self, name: str, value: Any) -> None:
        known = self.__dict__.get("_parameters", {})
        if name in known and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.check_assignment(name, known[name], value)
            value = nn.Parameter(value.detach(), requires_grad=False)
        super().__setattr__(name, value)

    def check_assignment(self, name: str, old: Tensor | None, new: Tensor) -> None:
        """Raise InputError when ``new`` cannot stand for parameter ``name``."""
        if old is not None and old.shape != new.shape:
            raise InputError(
                f"{type(self).__name__}.{name} has shape {tuple(old.shape)}; "
                f"a tensor of shape {tuple(new.shape)} cannot replace it."
            )
