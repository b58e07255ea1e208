"""The true MLP's derivative in a direction, J_MLP(x) v' (training/README.md §5). Letters: n tokens, D width."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import LayerParts, ModelParts
from circuit_tracer.models.sites import SITES, Side


class MLPDerivative:
    """Products with the Jacobian of what lies between a layer's input point and its output point, norms included."""

    def __init__(self, parts: ModelParts, points: Points) -> None:
        self.parts, self.points = parts, points

    def __call__(self, layer: int, x_nD: Tensor, direction_nD: Tensor) -> Tensor:
        """J(x) v (n, D), by forward-mode differentiation: about the cost of two passes through the MLP.

        x: activations at the input point; x and direction in the model's dtype.
        """
        function = between(self.parts.layers[layer], self.points.input, self.points.output)
        try:
            with torch.no_grad():
                product: Tensor = torch.func.jvp(function, (x_nD,), (direction_nD,))[1]
                return product
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error).lower():
                raise
            raise UnsupportedModelError(
                f"the MLP of {self.parts.architecture.model_type} has no forward-mode derivative in torch "
                f"{torch.__version__}: {str(error).splitlines()[0]} Set sparsity.jacobian_weight to 0."
            ) from error


def between(layer: LayerParts, input_point: str, output_point: str) -> Callable[[Tensor], Tensor]:
    """The function (n, D) -> (n, D) from a layer's MLP input point to its output point."""
    source, target = SITES[input_point], SITES[output_point]
    if layer.mlp_output is not layer.mlp:
        raise UnsupportedModelError("the MLP of this model is not one module. Set sparsity.jacobian_weight to 0.")

    def function(x_nD: Tensor) -> Tensor:
        hidden, norm = x_nD, layer.mlp_norm
        if norm is not None and source.norm is None:
            hidden = norm.module(hidden)
        elif norm is not None and source.side is Side.NORMALISED:
            gain, shift = norm.parameters.gain, norm.parameters.shift
            hidden = (hidden * gain if shift is None else hidden * gain + shift).to(x_nD.dtype)
        output = layer.mlp(hidden[None])
        output = (output[0] if isinstance(output, tuple) else output).reshape(x_nD.shape)
        if layer.mlp_post_norm is not None and target.norm is None:
            output = layer.mlp_post_norm.module(output)
        result: Tensor = output
        return result

    return function
