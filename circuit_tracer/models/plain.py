"""Is a module what its weight says? Decided by what it is, never by how small a difference is.

The frozen network reads projections, norms and embeddings as their weights, and lets everything else run. A module that is
more than its weight (an adapter, a parametrisation, a quantised layer, a hook of the user's) would be left out without a word
wherever what it adds is small, so it is refused by name.

Letters: H heads, K key/value heads, d d_head, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architecture import ValueRows
from circuit_tracer.models.watched import is_compiled

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LIBRARIES = (
    "circuit_tracer.models.text_only",
    "transformers.models.",
    "transformers.pytorch_utils",
    "torch.nn.modules.",
)
_HARMLESS_HOOKS = "transformers.utils.output_capturing"  # they only look


def projection(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) of a projection, views. Raises UnsupportedModelError unless it is a plain one."""
    if not _is_linear(module):
        raise _refusal(module, name, "it is no plain torch.nn.Linear")
    require_plain(module, name)
    weight = _weight(module, name)
    bias: Tensor | None = None if module.bias is None else _weight(module, name, "bias")
    return (weight if isinstance(module, nn.Linear) else weight.T), bias


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a projection, and nothing else."""
    return _is_linear(module) and is_plain(module)


# transformers' own projections: GPT-2's is stored transposed, Falcon's does what torch's does
_OWN_LINEAR = ("transformers.pytorch_utils.Conv1D", "transformers.models.falcon.modeling_falcon.FalconLinear")


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    return kind is nn.Linear or f"{kind.__module__}.{kind.__qualname__}" in _OWN_LINEAR


def require_own_class(module: nn.Module, name: str, package: str) -> None:
    """Refuse a module whose class is defined neither below `package` nor in transformers or torch."""
    if not type(module).__module__.startswith((package, *_LIBRARIES)):
        raise _refusal(
            module,
            name,
            "its class is not one of transformers' own, which the table of architectures describes",
            "If it is an adapter, merge it (peft: merge_and_unload()). A model with modules of its own is registered under a "
            "model_type of its own, with package= where they are defined (circuit_tracer.register_architecture).",
        )


def require_plain(module: nn.Module, name: str, parameters: Collection[str] = ("weight", "bias")) -> None:
    """Refuse a module read by its weights that holds anything else, or is changed from outside."""
    require_untouched(module, name)
    others = sorted((set(module._parameters) | set(module._modules)) - set(parameters))
    if others:
        raise _refusal(module, name, f"besides its weight it has {', '.join(others)}")
    for key in parameters:
        if getattr(module, key, None) is not None:
            _weight(module, name, key)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is its weight and bias, and nothing else."""
    try:
        require_plain(module, type(module).__name__)
    except UnsupportedModelError:
        return False
    return True


def require_untouched(module: nn.Module, name: str) -> None:
    """Refuse a module with a parametrisation, a hook, or a forward method that is not its class's."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        raise _refusal(
            module,
            name,
            "its weights are parametrised",
            "Fold that in (torch.nn.utils.parametrize.remove_parametrizations).",
        )
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if not str(getattr(hook, "__module__", "")).startswith(_HARMLESS_HOOKS):
            raise _refusal(
                module,
                name,
                f"it has a hook, {getattr(hook, '__qualname__', type(hook).__name__)}, whose effect a graph would leave out",
                "Remove the hook (for torch's weight_norm and spectral_norm: remove_weight_norm, remove_spectral_norm).",
            )
    if "forward" in vars(module) or is_compiled(module):
        raise _refusal(
            module,
            name,
            "its forward method has been replaced (torch.compile, accelerate, fused kernels, or by hand)",
            "Load the model without that.",
        )


LOOKS_AHEAD = "its attention may look at later tokens, and only causal attention can be traced"
_WRAPPERS = {  # an attribute by which a wrapper is known, and what is to be passed instead
    "merge_and_unload": "a peft model: pass model.merge_and_unload()",
    "_orig_mod": "torch.compile: pass model._orig_mod",
    "module": "a parallel wrapper: pass model.module",
}


def require_causal_lm(model: Any) -> None:
    """Refuse what is no transformers causal LM, or wraps one."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return
    hint = next((f" ({hint})" for name, hint in _WRAPPERS.items() if hasattr(model, name)), "")
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise UnsupportedModelError(f"a transformers causal LM is expected, got {kind}{hint}")


def require_known_attention(config: Any) -> None:
    """Refuse attention of the user's own: a trace replaces the implementation, and what it shows would not be that model's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    if function is not None and not function.__module__.startswith(("transformers.", "circuit_tracer.")):
        raise UnsupportedModelError(
            f"the model's attention implementation {name!r} is {function.__module__}.{function.__qualname__}, which a trace "
            "would replace by its own. Use one of transformers' own (model.set_attn_implementation('eager'))."
        )


def require_one_device(model: nn.Module) -> None:
    """Refuse weights that were left on disk, or lie on several devices."""
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        where = (
            "some weights are not loaded (on disk, or 'meta')"
            if "meta" in devices
            else f"weights are on {', '.join(devices)}"
        )
        raise UnsupportedModelError(
            f"{where}: a model is traced on one device, with all its weights. Load it without device_map, with device= instead."
        )


def value_rows(
    weight: Tensor, bias: Tensor | None, rows: ValueRows, n_heads: int, d_head: int
) -> tuple[Tensor, Tensor | None]:
    """Those of a projection's weight (out, D) and bias (out,) that make values: (K * d, D) and (K * d,), views if possible."""
    pick = _VALUE_ROWS[rows]
    return pick(weight, n_heads, d_head), None if bias is None else pick(bias, n_heads, d_head)


def _tail(tensor: Tensor, n_heads: int, d_head: int) -> Tensor:
    return tensor[(len(tensor) + n_heads * d_head) // 2 :]


def _interleaved(tensor: Tensor, n_heads: int, d_head: int) -> Tensor:
    n_kv = (len(tensor) // d_head - n_heads) // 2
    return tensor.reshape(n_kv, n_heads // n_kv + 2, d_head, *tensor.shape[1:])[:, -1].flatten(0, 1)


def _quarters(tensor: Tensor, n_heads: int, d_head: int) -> Tensor:
    rows: Tensor = tensor.reshape(4, 3, -1, *tensor.shape[1:])[:, 1].flatten(0, 1)
    return rows


def _latent(tensor: Tensor, n_heads: int, d_head: int) -> Tensor:
    rows: Tensor = tensor.unflatten(0, (n_heads, -1))[:, -d_head:].flatten(0, 1)
    return rows


_VALUE_ROWS: dict[ValueRows, Callable[[Tensor, int, int], Tensor]] = {
    ValueRows.WHOLE: lambda tensor, n_heads, d_head: tensor,
    ValueRows.TAIL: _tail,
    ValueRows.INTERLEAVED: _interleaved,
    ValueRows.QUARTERS: _quarters,
    ValueRows.LATENT: _latent,
}


def float_dtypes(model: nn.Module) -> list[torch.dtype]:
    """Dtypes of the model's weights, that of the first one first. Raises UnsupportedModelError for quantised ones."""
    found: dict[torch.dtype, None] = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype not in DTYPES or not _is_dense(parameter):
            raise UnsupportedModelError(
                f"weight {name!r} is a {type(parameter.data).__name__} of dtype {parameter.dtype}: quantised weights cannot be "
                f"read as linear maps. {DEQUANTISE}"
            )
        found[parameter.dtype] = None
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no weights")
    return list(found)


DEQUANTISE = (
    "Load the model in float32 or bfloat16: from_pretrained dequantises bitsandbytes, torchao and GGUF by itself; for a model "
    "that is loaded already, call model.dequantize() where transformers has it."
)


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is numbers and nothing else: no subclass that computes them, no sparse layout."""
    return type(tensor.data) is Tensor and tensor.layout is torch.strided


def _weight(module: nn.Module, name: str, key: str = "weight") -> Tensor:
    weight: Any = getattr(module, key)
    if not isinstance(weight, Tensor) or not _is_dense(weight) or weight.dtype not in DTYPES:
        raise _refusal(
            module, name, f"its {key} is a {type(weight).__name__} of {getattr(weight, 'dtype', '?')}", DEQUANTISE
        )
    return weight.detach()


_MERGE = "Merge what is added to it into its weight (peft: merge_and_unload()), or dequantise it."


def _refusal(module: nn.Module, name: str, why: str, remedy: str = _MERGE) -> UnsupportedModelError:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return UnsupportedModelError(f"{name} ({kind}) cannot be read as a linear map: {why}. {remedy}")


def named_path(model: nn.Module, modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Modules by their names in a model, with everything that contains them."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for module in modules:
        parts = names[id(module)].split(".")
        for end in range(len(parts) + 1):
            name = ".".join(parts[:end])
            found[name] = model.get_submodule(name)
    return found
