"""The places of a layer whose activations can be patched, while the model runs on a batch.

| site | shape | what |
|---|---|---|
| resid | (B, P, D) | residual stream that enters the layer |
| attn_out | (B, P, D) | what attention adds to it, after a norm that follows it |
| mlp_out | (B, P, D) | what the MLP adds to it, after a norm that follows it |
| head | (B, P, H * d) | outputs of the heads, side by side, before the output projection |
| dictionary_in | (B * P, D) | what the transcoder reads, which cannot be replaced |
| dictionary_out | (B, P, D) | where the transcoder writes |

Letters: B rows of a batch, P positions, D d_model, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from circuit_tracer.interventions.points import hook_norm, input_module, transcoder_input
from circuit_tracer.models.architectures import part
from circuit_tracer.models.capture import PromptCapture
from circuit_tracer.models.parts import LayerParts, ModelParts

Site = Literal["resid", "attn_out", "mlp_out", "head"]
SITES: tuple[Site, ...] = ("resid", "attn_out", "mlp_out", "head")
Visit = Callable[[str, int, Tensor], Tensor | None]


@contextmanager
def visiting(
    parts: ModelParts,
    sites: Iterable[str],
    visit: Visit,
    output_hook: str = "hook_mlp_out",
    input_hook: str = "mlp.hook_in",
    scales: PromptCapture | None = None,
) -> Iterator[None]:
    """Inside the block, passes call `visit(site, layer, activation)` for the named sites; what it returns, unless None,
    replaces the activation. Norms are computed by our formula, differentiably, or with the scales of a captured pass.
    """
    wanted, handles = set(sites), []
    try:
        handles.append(hook_norm(parts.final_norm, None if scales is None else scales.final_inverse_sigma))
        for index, layer in enumerate(parts.layers):
            held = {} if scales is None else scales.layers[index].inverse_sigma
            handles += [hook_norm(norm, held.get(name)) for name, norm in layer.norms().items()]
            if "dictionary_in" in wanted:
                handles.append(_hook_input(index, layer, parts, visit, input_hook, held.get("mlp_norm")))
            for site in wanted - {"dictionary_in"}:
                handles.append(_hook(site, index, layer, parts, visit, output_hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_batch(parts: ModelParts, ids: Tensor, copies: int = 1) -> Tensor:
    """Logits (copies, V) at the last position of ids (P,), in the compute dtype; differentiable."""
    hidden = parts.model.base_model(input_ids=ids[None].expand(copies, -1).to(parts.device), use_cache=False)
    final = hidden.last_hidden_state[:, -1]
    logits = parts.unembed(final.to(next(parts.unembed.parameters()).dtype)).to(parts.compute_dtype)
    cap = parts.final_softcap
    return torch.tanh(logits / cap) * cap if cap else logits


def _hook_input(
    index: int, layer: LayerParts, parts: ModelParts, visit: Visit, input_hook: str, scale_P: Tensor | None
) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        visit("dictionary_in", index, transcoder_input(parts, layer, input_hook, args[0], scale_P))

    return input_module(layer).register_forward_pre_hook(hook)


def _hook(site: str, index: int, layer: LayerParts, parts: ModelParts, visit: Visit, output_hook: str) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        new = visit(site, index, given)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first: Tensor = output[0] if isinstance(output, tuple) else output
        new = visit(site, index, first if first.ndim == 3 else first.reshape(args[0].shape))
        if new is None:
            return None
        return (new.reshape(first.shape), *output[1:]) if isinstance(output, tuple) else new.reshape(first.shape)

    if site == "resid":
        return layer.module.register_forward_pre_hook(before, with_kwargs=True)
    row = parts.architecture
    if site == "head":
        return part(layer.module, row.output).register_forward_pre_hook(before, with_kwargs=True)
    if site == "attn_out":
        norm = layer.attention_post_norm
        module = part(layer.module, row.attention) if norm is None else norm.module
    else:
        norm = layer.mlp_post_norm
        raw = norm is None or (site == "dictionary_out" and output_hook == "mlp.hook_out")
        module = layer.mlp if raw or norm is None else norm.module
    return module.register_forward_hook(after)
