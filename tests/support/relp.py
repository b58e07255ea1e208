"""RelP as its paper states it, patched into a transformers model: what autograd then gives is what neurons' rows must say.

Rules: a norm's scale is a constant, and so are attention patterns and what a router decides; an activation function is its
ratio to its argument, f(z) = f(0) + r z with r constant; a product of two factors gives half of its gradient to each. The
model's own code runs; only functions of torch are seen on their way, in float64.

Letters: P positions, D d_model, F neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WRITES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")  # projections behind neurons
GATED = ("gate_proj", "gate_up_proj")
FUNCTIONS = ("act_fn", "act", "activation_fn")


class Relp:
    """A copy of a model under the rules, and its neurons on one prompt, as leaves where paths may end.

    neurons: of each call that writes neurons, in order: their activations, with a graph; leaves: what stands for them further
    on (the same tensors unless `stop`). stop: gradients end at neurons, so that they are direct effects.
    """

    def __init__(self, model: Any, ids: Tensor, stop: bool = False) -> None:
        self.model, self.stop = deepcopy(model), stop
        self.model.set_attn_implementation("eager")
        self.neurons: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.written: dict[int, bool] = {}  # where weights lie that write neurons: whether these are products
        for module in self.model.modules():
            self._patch(module)
        self.model.config.final_logit_softcapping = None  # logits are read before it
        self.tokens = self.model.get_input_embeddings()(ids)[None].detach().requires_grad_()
        with torch.enable_grad(), _Rules(self):
            self.logits: Tensor = self.model(inputs_embeds=self.tokens, use_cache=False).logits[0]

    def _patch(self, module: nn.Module) -> None:
        for name in FUNCTIONS:
            if isinstance(function := getattr(module, name, None), nn.Module):
                setattr(module, name, _Ratio(function))
        plain = any(hasattr(module, name) for name in FUNCTIONS)
        gated = any(hasattr(module, name) for name in GATED)
        for name in WRITES:
            write = getattr(module, name, None)
            if (plain or gated) and write is not None:
                weight = write if isinstance(write, nn.Parameter) else write.weight
                self.written[weight.untyped_storage().data_ptr()] = gated

    def neuron(self, value: Tensor, weight: Tensor) -> Tensor:
        """What goes on of neurons that a weight is about to write; the tensor itself if it is no such weight."""
        gated = self.written.get(weight.untyped_storage().data_ptr())
        if gated is None:
            return value
        if gated:
            value = 0.5 * value + 0.5 * value.detach()
        self.neurons.append(value)
        self.leaves.append(value.detach().requires_grad_() if self.stop else value)
        return self.leaves[-1]


class _Rules(TorchFunctionMode):
    def __init__(self, relp: Relp) -> None:
        super().__init__()
        self.relp = relp

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float or (func is Tensor.to and args[1:] == (torch.float32,)):
            return args[0]  # a float64 model stays one
        if func in (
            torch.softmax,
            functional.softmax,
            torch.Tensor.softmax,
            torch.rsqrt,
            torch.sigmoid,
            torch.Tensor.sigmoid,
        ):
            kwargs.pop("dtype", None)
            return func(*args, **kwargs).detach()
        if func is functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is functional.linear:
            return func(self.relp.neuron(args[0], args[1]), *args[1:], **kwargs)
        if func in (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__):
            return func(self.relp.neuron(args[0], args[1]), *args[1:], **kwargs)
        if func is torch.addmm:
            return func(args[0], self.relp.neuron(args[1], args[2]), args[2], **kwargs)
        return func(*args, **kwargs)


class _Ratio(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            value, zero = self.function(z), self.function(torch.zeros_like(z))
            ratio = torch.where(z == 0, torch.zeros_like(z), (value - zero) / z)
        return ratio * z + zero


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    out = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias
