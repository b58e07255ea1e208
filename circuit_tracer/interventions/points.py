"""Hooks at the two places of a layer where a transcoder reads and writes, while the model runs.

Norms are computed by our own formula in the compute dtype, live or with the scale of a captured pass, so that a pass with
nothing changed is the captured pass. Letters: B sequences, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circuit_tracer.models.capture import PromptCapture
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.parts import LayerParts, ModelParts, Norm

Read = Callable[[int, Tensor], None]
Write = Callable[[int, Tensor], Tensor | None]


@contextmanager
def hooked(
    parts: ModelParts, input_hook: str, output_hook: str, read: Read, write: Write, scales: PromptCapture | None = None
) -> Iterator[None]:
    """Inside the block, every forward pass calls, for each layer, `read(layer, x)` with the activation (P, D) at the input
    hook, then `write(layer, y)` with the activation (P, D) at the output hook, which it may replace.

    A pass over B sequences hands over (B * P, D), one sequence after the other. scales: a captured pass whose norm scales
    are used instead of the pass' own, for each sequence.
    """
    handles = []
    try:
        final = None if scales is None else scales.final_inverse_sigma
        handles.append(hook_norm(parts.final_norm, final))
        for index, layer in enumerate(parts.layers):
            held = {} if scales is None else scales.layers[index].inverse_sigma
            handles += [hook_norm(norm, held.get(name)) for name, norm in layer.norms().items()]
            handles.append(_hook_input(parts, index, layer, input_hook, read, held.get("mlp_norm")))
            handles.append(_hook_output(parts, index, layer, output_hook, write))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _frozen(norm: Norm, x_PD: Tensor, scale_P: Tensor | None) -> FrozenNorm:
    scale = norm.parameters.inverse_sigma(x_PD) if scale_P is None else scale_P.repeat(len(x_PD) // len(scale_P))
    return norm.parameters.freeze(scale)


def hook_norm(norm: Norm, scale_P: Tensor | None = None) -> Any:
    """Hook: a norm computes by our formula in the compute dtype, with its own scale or with (P,) of a captured pass."""

    def hook(module: nn.Module, args: Sequence[Tensor], output: Tensor) -> Tensor:
        x = args[0].reshape(-1, args[0].shape[-1]).to(norm.parameters.gain.dtype)
        return _frozen(norm, x, scale_P).forward(x).to(output.dtype).reshape(output.shape)

    return norm.module.register_forward_hook(hook)


def _hook_input(
    parts: ModelParts, index: int, layer: LayerParts, input_hook: str, read: Read, scale_P: Tensor | None
) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor]) -> None:
        read(index, transcoder_input(parts, layer, input_hook, args[0].detach(), scale_P))

    return input_module(layer).register_forward_pre_hook(hook)


def input_module(layer: LayerParts) -> nn.Module:
    """The module whose input is the residual stream that the MLP or its norm reads."""
    return layer.mlp if layer.mlp_norm is None else layer.mlp_norm.module


def transcoder_input(
    parts: ModelParts, layer: LayerParts, input_hook: str, resid: Tensor, scale_P: Tensor | None = None
) -> Tensor:
    """The activation (B * P, D) at the input hook, of the residual stream (B, P, D) that enters `input_module`; with the
    norm's own scale or that of a captured pass. Differentiable.
    """
    x, norm = resid.reshape(-1, parts.config.d_model).to(parts.compute_dtype), layer.mlp_norm
    if norm is None or input_hook == "hook_resid_mid":
        return x
    frozen = _frozen(norm, x, scale_P)
    return frozen.normalise(x) if input_hook == "ln2.hook_normalized" else frozen.forward(x)


def _hook_output(parts: ModelParts, index: int, layer: LayerParts, output_hook: str, write: Write) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor], output: Any) -> Any:
        first: Tensor = output[0] if isinstance(output, tuple) else output
        replacement = write(index, first.detach().reshape(-1, parts.config.d_model).to(parts.compute_dtype))
        if replacement is None:
            return None
        replacement = replacement.to(first.dtype).reshape(first.shape)
        return (replacement, *output[1:]) if isinstance(output, tuple) else replacement

    norm = layer.mlp_post_norm
    after_norm = output_hook == "hook_mlp_out" and norm is not None
    module = norm.module if after_norm and norm is not None else layer.mlp
    return module.register_forward_hook(hook)


def run_model(
    parts: ModelParts, ids: Tensor, past: Any = None, keep_past: bool = False, copies: int = 1
) -> tuple[Tensor, Any]:
    """(final norm's output (copies * P, D) in the compute dtype, key-value cache) of one pass over ids (P,)."""
    with torch.no_grad():
        output = parts.model.base_model(
            input_ids=ids[None].expand(copies, -1).to(parts.device),
            past_key_values=past,
            use_cache=keep_past or past is not None,
        )
    final = output.last_hidden_state
    return final.reshape(-1, final.shape[-1]).to(parts.compute_dtype), output.past_key_values
