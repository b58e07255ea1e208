"""Models that are more than the numbers in their files: peft adapters are merged, quantised weights de-quantised (warned).

Only models that were loaded here are changed so. Of one that is handed over a copy is de-quantised, and live adapters are
refused (models/plain.py).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from circuit_tracer.errors import FileFormatError, InputError, UnsupportedModelError, warn
from circuit_tracer.models.sources import Source

# quantised files that transformers turns into plain numbers while it loads them, with the class that asks for it
_ON_LOADING = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config", "compressed-tensors": "CompressedTensorsConfig"}


def base_of(source: Source, adapter: dict[str, Any]) -> str:
    """The name of the model that an adapter changes, as its adapter_config.json gives it."""
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if not isinstance(base, str) or not base:
        raise FileFormatError(f"the adapter at {source.name!r} does not name its base model (base_model_name_or_path)")
    revision = adapter.get("revision")
    return f"{base}@{revision}" if isinstance(revision, str) and revision and not os.path.exists(base) else base


def merged(source: Source, adapter: dict[str, Any], load: Callable[[str], Any]) -> Any:
    """The base model of a peft adapter, loaded by its name, with the adapter merged into its weights.

    Raises InputError without peft, UnsupportedModelError for an adapter that is no change of weights.
    """
    base = base_of(source, adapter)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(
            f"{source.name!r} is a peft adapter: install peft, or merge it first (merge_and_unload)"
        ) from error
    wrapped = PeftModel.from_pretrained(load(base), source.name, **source.options)
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"the adapter at {source.name!r} ({adapter.get('peft_type')}) is no change of weights, so it cannot be merged"
        )
    warn(f"the adapter at {source.name} is merged into its base model {base}")
    return wrapped.merge_and_unload(safe_merge=True).eval().requires_grad_(False)


def load_dequantised(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of from_pretrained, with which quantised files become plain numbers while they are loaded."""
    import transformers

    if "gguf_file" in options:  # where transformers could keep the file's blocks, it depends on what else is installed
        return (
            {"quantization_config": transformers.GgufConfig(dequantize=True)}
            if hasattr(transformers, "GgufConfig")
            else {}
        )
    quantised = getattr(config, "quantization_config", None)
    method = _method(quantised)
    if method not in _ON_LOADING or "quantization_config" in options:
        return {}
    _say(method)
    return {"quantization_config": getattr(transformers, _ON_LOADING[method])(dequantize=True)}


def dequantised_copy(model: Any) -> Any:
    """A model handed over by its user: itself, or where it is quantised a copy in plain numbers. The model stays as it is."""
    quantiser = getattr(model, "hf_quantizer", None)
    quantised = quantiser is not None and _method(quantiser.quantization_config) != "gguf"
    if not quantised and not any(_dequantises(weight) for weight in model.parameters()):
        return model
    return dequantised(copy.deepcopy(model))


def dequantised(model: Any) -> Any:
    """A model that was loaded quantised, in plain numbers. Raises UnsupportedModelError where that cannot be done."""
    quantiser: Any = getattr(model, "hf_quantizer", None)
    by_itself = any(_dequantises(weight) for weight in model.parameters())
    done = quantiser is None or getattr(quantiser.quantization_config, "dequantize", False)
    if not by_itself and (done or _method(quantiser.quantization_config) == "gguf"):  # those come as plain numbers
        return model
    method = "torchao" if by_itself else _method(quantiser.quantization_config)
    if by_itself:
        _unwrap(model)
        if quantiser is not None:
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
            if weight is not None and _dequantises(weight):
                numbers: Any = weight.data
                setattr(module, name, nn.Parameter(numbers.dequantize(), requires_grad=False))


def _dequantises(weight: Tensor) -> bool:
    """Whether a weight is of a class of tensors that stand for other numbers, as torchao's do."""
    kinds = type(weight.data).__mro__
    return any("dequantize" in vars(kind) for kind in kinds[: kinds.index(Tensor)])


def _method(quantised: Any) -> str:
    """The name of the method in a quantization_config."""
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    return str(getattr(method, "value", method))


def _say(method: str) -> None:
    warn(
        f"the model is quantised ({method}); its weights were de-quantised, and the graph is that of the de-quantised model"
    )
