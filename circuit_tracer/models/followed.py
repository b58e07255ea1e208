"""A layer's attention module once more, on an input that autograd follows, up to its queries and keys.

It is a copy, made for this purpose alone: in the compute dtype, its norms of queries and keys with constant scales, and
autograd ends at the projections. The model itself is not touched, and what other threads do with it does not matter.

Letters: P positions, D d_model, O outputs of a projection, H heads, K key/value heads, d d_head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from circuit_tracer.models.call import Call
from circuit_tracer.models.norms import NormParameters
from circuit_tracer.models.parts import LayerParts
from circuit_tracer.models.plain import is_projection, projection


class Leaf(NamedTuple):
    """Where autograd's graph ends: at what enters the module, or at a projection of it."""

    value: Tensor  # (1, P, D), or (1, P, O)
    weight: Tensor | None = None  # (O, D) of the projection, for the rows that are wanted


class Followed(NamedTuple):
    """Queries and keys with autograd's graph, and those of an input of zeros, norms held."""

    query: Tensor  # (H, P, d)
    key: Tensor  # (K, P, d)
    query_at_zero: Tensor
    key_at_zero: Tensor
    leaves: list[Leaf]


def follow(
    layer: LayerParts, call: Call, entered_1PD: Tensor, catch: Callable[[Callable[[], object]], tuple[Tensor, Tensor]]
) -> Followed:
    """call: what the layer's attention was called with. entered_1PD: what enters it, in the compute dtype. catch: calls what it
    is given, and returns the queries and keys that attention comes by.
    """
    dtype, given = entered_1PD.dtype, entered_1PD.detach().clone().requires_grad_()
    module, norms, projections = _own_copy(layer, dtype)
    call = Call(*_in_dtype(tuple(call), dtype))

    def attend(x: Tensor) -> tuple[Tensor, Tensor]:
        args, kwargs = call.on(x)
        with _Unrounded():
            return catch(lambda: module(*args, **kwargs))

    for each in projections:
        each.given = given
    with torch.enable_grad():
        query, key = attend(given)
    leaves = [Leaf(given), *(each.leaf for each in projections if each.leaf is not None)]
    for norm in norms:
        norm.hold()
    with torch.no_grad():
        return Followed(query, key, *attend(torch.zeros_like(given)), leaves)


class _Unrounded(TorchFunctionMode):
    """Leave float64 what it is where a module's own code rounds it to float32 (rotary embeddings of Cohere, Ernie, Llama 4)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tensor.float of float64 is the tensor, laid out anew as it would be, and all else what it is."""
        if func is Tensor.float and args[0].dtype is torch.float64:
            return args[0].contiguous()
        return func(*args, **(kwargs or {}))


class _HeldNorm(nn.Module):
    """A norm of queries or keys whose scales are constants to autograd, and to whatever enters once they are held.

    A module that is called several times a pass (for queries, then for keys) has the scales of each call.
    """

    def __init__(self, parameters: NormParameters) -> None:
        super().__init__()
        self.norm = parameters
        self.scales: list[Tensor] = []  # of each call until they are held
        self.held: Iterator[Tensor] | None = None

    def hold(self) -> None:
        """From now on, calls have the scales of those until now, one after the other."""
        self.held = iter(self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """The norm, in the compute dtype."""
        if self.held is None:
            self.scales.append(self.norm.inverse_sigma(x.detach()))
        scale = self.scales[-1] if self.held is None else next(self.held)
        return self.norm.freeze(scale).forward(x)


class _Projection(nn.Module):
    """A plain projection; where it reads what enters the attention module, autograd ends at its output, so that the weight is
    applied to gradients of the positions that are wanted alone.
    """

    def __init__(self, within: nn.Module, name: str) -> None:
        super().__init__()
        self.within, self.weight, self.bias = within, within.weight, within.bias
        self.matrix, _ = projection(within, name)
        self.given: Tensor | None = None
        self.leaf: Leaf | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The projection of x."""
        made: Tensor = self.within(x)
        if x is not self.given:
            return made
        self.leaf = Leaf(made.detach().requires_grad_(), self.matrix)
        return self.leaf.value


def _own_copy(layer: LayerParts, dtype: torch.dtype) -> tuple[nn.Module, list[_HeldNorm], list[_Projection]]:
    """A layer's attention module for this purpose alone, in the compute dtype; its norms of queries and keys, its projections.

    Weights are shared where they have that dtype. The configuration is shared, by which the run knows the module.
    """
    attention: Any = layer.attention
    tensors = [*attention.parameters(), *attention.buffers()]
    memo: dict[int, Any] = {id(tensor): _constant(tensor, dtype) for tensor in tensors}
    module: nn.Module = copy.deepcopy(attention, memo | {id(attention.config): attention.config})
    norms = {path: _HeldNorm(norm.parameters) for path, norm in layer.head_norms.items()}
    projections = {name: _Projection(each, name) for name, each in module.named_children() if is_projection(each)}
    for path, stand_in in (*norms.items(), *projections.items()):
        module.set_submodule(path, stand_in)
    return module, list(norms.values()), list(projections.values())


def _constant(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    new = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
    return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new


def _in_dtype(given: Any, dtype: torch.dtype) -> Any:
    """The tensors of a call in a dtype, where they are real numbers."""
    if isinstance(given, Tensor):
        return given.detach().to(dtype) if given.is_floating_point() else given
    if isinstance(given, tuple | list):
        return type(given)(_in_dtype(each, dtype) for each in given)
    if isinstance(given, Mapping):
        return {name: _in_dtype(each, dtype) for name, each in given.items()}
    return given
