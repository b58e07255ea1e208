"""One forward pass of the model, batch 1, that keeps what the frozen network needs (attribution/README.md §2).

Letters: L layers, P positions, D d_model, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.models.attention import AttentionTape, attention_tape
from circuit_tracer.models.norms import NormParameters
from circuit_tracer.models.parts import LayerParts, ModelParts, Norm


@dataclass
class LayerCapture:
    """What one layer did on the prompt, in the compute dtype."""

    resid_mid: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) what the MLP (or its norm) reads
    mlp_out: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) before any post norm
    inverse_sigma: dict[str, Tensor] = field(default_factory=dict)  # norm name -> (P,)


@dataclass
class PromptCapture:
    """A prompt's forward pass, frozen. Tensors are detached and in the compute dtype (float64 or float32)."""

    ids: Tensor  # (P,)
    embedding: Tensor  # (P, D) token vectors as they enter the first layer (scaled, without positions)
    position_embedding: Tensor | None  # (P, D) absolute positions, where the architecture has them
    layers: list[LayerCapture]
    patterns: list[Tensor]  # L x (H, P, P), or none
    scores: list[Scores]  # what the patterns can be made from, where they are not kept
    final_inverse_sigma: Tensor  # (P,)
    final: Tensor  # (P, D) output of the final norm

    @property
    def n_pos(self) -> int:
        """Number of tokens, special ones included."""
        return int(self.ids.shape[0])


def capture(parts: ModelParts, ids: Tensor, keep_patterns: bool = True) -> PromptCapture:
    """Run the model once on ids (P,) and keep the frozen quantities; attention patterns, or queries, keys and log-sum-exp.

    Norms are recomputed in the compute dtype while the model runs, so that the frozen 1/sigma is exactly what the pass used
    (transformers computes them in float32 even in a float64 model). Raises InputError for a prompt beyond the context
    length and NumericalError when activations are not finite.
    """
    check_length(parts, ids)
    layers = [LayerCapture() for _ in parts.layers]
    tape = AttentionTape(recompute=not keep_patterns)
    first: dict[str, Tensor] = {}
    final: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(attention_tape(tape))
        stack.enter_context(_hooks(parts, layers, first, final))
        hidden = parts.model.base_model(input_ids=ids[None].to(parts.device), use_cache=False).last_hidden_state
    result = _assemble(parts, ids, layers, tape, first, final, hidden[0].to(parts.compute_dtype))
    _require_finite(result)
    return result


def logits_at(parts: ModelParts, final_nD: Tensor, softcap: bool = True) -> Tensor:
    """Logits (n, V) of final-norm outputs (n, D), in the compute dtype."""
    with torch.no_grad():
        logits = parts.unembed(final_nD.to(next(parts.unembed.parameters()).dtype)).to(parts.compute_dtype)
    cap = parts.final_softcap
    return torch.tanh(logits / cap) * cap if softcap and cap else logits


def check_length(parts: ModelParts, ids: Tensor) -> None:
    """Refuse a prompt that is empty, too long for the model, or outside its vocabulary."""
    n, limit = int(ids.shape[0]), parts.context_length
    if limit is not None and n > limit:
        raise InputError(f"prompt has {n} tokens, but the model's context length is {limit}. Shorten the prompt.")
    if n and (int(ids.min()) < 0 or int(ids.max()) >= parts.config.d_vocab):
        raise InputError(
            f"token ids span {int(ids.min())}..{int(ids.max())}, but the model's vocabulary is 0..{parts.config.d_vocab - 1}. "
            "Use the model's own tokenizer."
        )


@contextmanager
def _hooks(
    parts: ModelParts, layers: list[LayerCapture], first: dict[str, Tensor], final: dict[str, Tensor]
) -> Iterator[None]:
    handles = []
    dtype = parts.compute_dtype
    try:
        handles.append(
            parts.layers[0].module.register_forward_pre_hook(_keep_input(first, "resid", dtype), with_kwargs=True)
        )
        handles += [exact_norm(parts.final_norm, final, "inverse_sigma")]
        for layer, kept in zip(parts.layers, layers, strict=True):
            handles += [exact_norm(norm, kept.inverse_sigma, name) for name, norm in layer.norms().items()]
            handles += _mlp_hooks(layer, kept, dtype)
        yield
    finally:
        for handle in handles:
            handle.remove()


def exact_norm(norm: Norm, kept: dict[str, Tensor], name: str) -> Any:
    """Hook: replace a norm's output by ours, computed in the compute dtype, and keep its 1/sigma (P,)."""

    def hook(module: nn.Module, args: Sequence[Tensor], output: Tensor) -> Tensor:
        x = args[0][0].to(norm.parameters.gain.dtype)
        kept[name] = norm.parameters.inverse_sigma(x)
        return norm.parameters.freeze(kept[name]).forward(x).to(output.dtype)[None]

    return norm.module.register_forward_hook(hook)


def _mlp_hooks(layer: LayerParts, kept: LayerCapture, dtype: torch.dtype) -> list[Any]:
    reader = layer.mlp if layer.mlp_norm is None else layer.mlp_norm.module

    def keep_resid_mid(module: nn.Module, args: Sequence[Tensor]) -> None:
        kept.resid_mid = args[0][0].detach().to(dtype)

    def keep_mlp_out(module: nn.Module, args: Sequence[Tensor], output: Any) -> None:
        kept.mlp_out = (
            (output[0] if isinstance(output, tuple) else output).detach().to(dtype).reshape(kept.resid_mid.shape)
        )

    return [reader.register_forward_pre_hook(keep_resid_mid), layer.mlp.register_forward_hook(keep_mlp_out)]


def _keep_input(kept: dict[str, Tensor], name: str, dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor], kwargs: dict[str, Any]) -> None:
        kept[name] = (args[0] if args else kwargs["hidden_states"])[0].detach().to(dtype)

    return hook


def _assemble(
    parts: ModelParts,
    ids: Tensor,
    layers: list[LayerCapture],
    tape: AttentionTape,
    first: dict[str, Tensor],
    final: dict[str, Tensor],
    hidden_PD: Tensor,
) -> PromptCapture:
    resid, positions = first["resid"], None
    if parts.architecture.position_embedding is not None:
        table: Any = parts.model.get_submodule(parts.architecture.position_embedding)
        positions = table.weight[: ids.shape[0]].detach().to(resid.dtype)
    return PromptCapture(
        ids=ids.detach().cpu(),
        embedding=resid if positions is None else resid - positions,
        position_embedding=positions,
        layers=layers,
        patterns=[tape.patterns[layer] for layer in range(len(tape.patterns))],
        scores=[tape.scores[layer] for layer in range(len(tape.scores))],
        final_inverse_sigma=final["inverse_sigma"],
        final=hidden_PD,
    )


def _require_finite(captured: PromptCapture) -> None:
    for index, layer in enumerate(captured.layers):
        if not (torch.isfinite(layer.resid_mid).all() and torch.isfinite(layer.mlp_out).all()):
            raise NumericalError(
                f"the model's activations at layer {index} are not finite on this prompt. Check the model's weights, or load "
                "it in float32 instead of float16."
            )
    if not torch.isfinite(captured.final).all():
        raise NumericalError(
            "the model's final residual stream is not finite on this prompt. Check the model's weights."
        )


def norm_parameters(norm: Norm | None) -> NormParameters | None:
    """Parameters of a norm that may not exist."""
    return None if norm is None else norm.parameters
