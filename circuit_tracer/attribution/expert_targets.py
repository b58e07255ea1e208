"""Why a token goes to an expert: the router's logit of it, as a target."""

from __future__ import annotations

from torch import Tensor, nn

from circuit_tracer.attribution.stream_targets import DirectionTarget
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.indices import require_layer
from circuit_tracer.models.parts import ModelParts

_ROUTERS = ("gate", "router")  # names of a router in the MLP, whose input it reads
_WITHIN = ("", "layer", "linear", "classifier")  # where its weight is


def expert_target(
    parts: ModelParts, layer: int, expert: int, versus: int | None = None, position: int = -1
) -> DirectionTarget:
    """The logit that the router of a layer gives to an expert, or its difference to another expert's, at a position.

    It is what the router's weight reads of the MLP's input; a bias that the router adds to it is the same for every token,
    and no part of it.

    Args:
        parts: `model.parts`.
        layer: The layer.
        expert: Its number.
        versus: Another expert, whose logit is subtracted; None: none.
        position: Negative ones count from the end.

    Returns:
        A target for `attribute(..., attribution_targets=[...])`, in units of the router's logit.

    Raises:
        InputError: For a layer or expert that does not exist.
        UnsupportedModelError: For a layer without experts, or whose router is not one matrix.
    """
    weight = _router_weight(parts, require_layer(layer, len(parts.layers)))
    for each in (expert,) if versus is None else (expert, versus):
        if not 0 <= each < len(weight):
            raise InputError(f"expert is {each}; layer {layer} has experts 0 to {len(weight) - 1}")
    vector = weight[expert] if versus is None else weight[expert] - weight[versus]
    label = f"expert {expert} of layer {layer}" + ("" if versus is None else f" rather than {versus}")
    return DirectionTarget(vector.to(parts.compute_dtype), "mlp.hook_in", layer, position, label=label)


def _router_weight(parts: ModelParts, layer: int) -> Tensor:
    """(E, D)."""
    mlp = parts.layers[layer].mlp
    for name in _ROUTERS:
        router = getattr(mlp, name, None)
        for path in _WITHIN if isinstance(router, nn.Module) else ():
            module = getattr(router, path, None) if path else router
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == parts.config.d_model:
                return weight.detach()
    raise UnsupportedModelError(
        f"layer {layer} of this {parts.architecture.model_type} ({type(mlp).__name__}) has no router that is one matrix of its "
        "MLP's input, so there is no expert to ask for"
    )
