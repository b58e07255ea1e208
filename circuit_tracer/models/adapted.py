"""Models that are more than the numbers in their files: peft adapters are merged, quantised weights de-quantised, and it is said.

Only models that were loaded here are changed so; one that is handed over is refused instead (models/plain.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from circuit_tracer.errors import FileFormatError, InputError, UnsupportedModelError

if TYPE_CHECKING:
    from circuit_tracer.models.loading import Source

# quantised files that transformers turns into plain numbers while it loads them, with the class that asks for it
_ON_LOADING = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config", "compressed-tensors": "CompressedTensorsConfig"}


def merged(source: Source, adapter: dict[str, Any], load: Callable[[Source], Any]) -> Any:
    """The base model of a peft adapter, with the adapter merged into its weights.

    Raises InputError without peft or without the base model, UnsupportedModelError for an adapter that is no change of weights.
    """
    from circuit_tracer.models.loading import pretrained_source

    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if not isinstance(base, str) or not base:
        raise FileFormatError(f"the adapter at {source.name!r} does not name its base model (base_model_name_or_path)")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(f"{source.name!r} is a peft adapter; install peft to load it, or merge it (merge_and_unload)") from error
    model = load(pretrained_source(base, adapter.get("revision")))
    wrapped = PeftModel.from_pretrained(model, source.name, **source.options)
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"the adapter at {source.name!r} ({adapter.get('peft_type')}) is no change of weights, so it cannot be merged and traced"
        )
    warnings.warn(f"the adapter at {source.name} is merged into its base model {base}", stacklevel=2)
    return wrapped.merge_and_unload(safe_merge=True).eval().requires_grad_(False)


def load_dequantised(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of from_pretrained, with which quantised files become plain numbers while they are loaded."""
    import transformers

    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    method = str(getattr(method, "value", method))
    if method not in _ON_LOADING or "quantization_config" in options:
        return {}
    _say(method)
    return {"quantization_config": getattr(transformers, _ON_LOADING[method])(dequantize=True)}


def dequantised(model: Any) -> Any:
    """A model that was loaded quantised, in plain numbers. Raises UnsupportedModelError where that cannot be done."""
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None or getattr(quantiser.quantization_config, "dequantize", False):
        return model
    method = str(getattr(quantiser.quantization_config.quant_method, "value", quantiser.quantization_config.quant_method))
    if method == "torchao":
        _unwrap(model)
        quantiser.remove_quantization_config(model)
    else:
        try:
            model = model.dequantize()
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"the model is quantised with {method}, which transformers cannot undo; load a version that is not quantised"
            ) from error
    _say(method)
    return model


def _unwrap(model: nn.Module) -> None:
    """Weights that are tensors of a class of torchao's, as the numbers they stand for."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or type(weight.data) is Tensor:
                continue
            if not hasattr(weight, "dequantize"):
                raise UnsupportedModelError(f"a weight is a {type(weight).__name__}, which cannot be de-quantised")
            setattr(module, name, nn.Parameter(torch.as_tensor(weight.dequantize()), requires_grad=False))


def _say(method: str) -> None:
    warnings.warn(
        f"the model is quantised ({method}); its weights were de-quantised, and the graph is that of the de-quantised model",
        stacklevel=2,
    )
