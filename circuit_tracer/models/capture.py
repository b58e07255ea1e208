"""One forward pass of the model, batch 1, that keeps what the frozen network needs (attribution/README.md §2).

Letters: L layers, P positions, D d_model, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError, UnsupportedModelError
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.parts import SOFTCAP, ModelParts, Norm
from circuit_tracer.models.plain import LOOKS_AHEAD
from circuit_tracer.models.run import FINAL_NORM, ModelRun, Place, Visit, in_turn
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.whose import Holder, config_value, held_by


@dataclass
class LayerCapture:
    """What one layer did on the prompt, in the compute dtype."""

    resid_mid: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) what the MLP (or its norm) reads
    mlp_out: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) before any post norm
    added: Tensor | None = None  # (P, D) what an intervention adds at the dictionary's output hook
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

    def scales(self, layer: int, name: str, norm: Norm, x_nD: Tensor) -> FrozenNorm:
        """The rule of a pass whose norms keep the scales of this one, for each of its sequences (models/run.py)."""
        scale_P = self.final_inverse_sigma if name == FINAL_NORM else self.layers[layer].inverse_sigma[name]
        return norm.parameters.freeze(scale_P.repeat(len(x_nD) // len(scale_P)))

    def replayed(self) -> AttentionTape:
        """For a pass whose attention keeps the patterns of this one."""
        return AttentionTape(dict(enumerate(self.patterns)), replay=True)


@plain_torch()
def capture(
    parts: ModelParts,
    ids: Tensor,
    keep_patterns: bool = True,
    visits: Mapping[str, Visit] | None = None,
    tape: AttentionTape | None = None,
) -> PromptCapture:
    """Run the model once on ids (P,) and keep the frozen quantities; attention patterns, or queries, keys and log-sum-exp.

    Norms are recomputed in the compute dtype while the model runs, so that the frozen 1/sigma is exactly what the pass used
    (transformers computes them in float32 even in a float64 model). Raises InputError for a prompt beyond the context
    length and NumericalError when activations are not finite.

    visits: of an intervention, by site, which write at the dictionary's output hook only. tape: attention that is replayed.
    """
    check_length(parts, ids)
    kept, dtype = _Kept([LayerCapture() for _ in parts.layers]), parts.compute_dtype
    tape = AttentionTape(recompute=not keep_patterns) if tape is None else tape

    def keep_first(layer: int, resid_1PD: Tensor) -> None:
        kept.first = resid_1PD[0].detach().to(dtype)

    def keep_mid(layer: int, resid_1PD: Tensor) -> None:
        kept.layers[layer].resid_mid = resid_1PD[0].detach().to(dtype)

    def keep_out(layer: int, out_1PD: Tensor) -> None:
        kept.layers[layer].mlp_out = out_1PD[0].detach().to(dtype)

    every: dict[Place, Visit] = {("hook_resid_pre", 0): keep_first}
    every |= {("hook_resid_mid", layer): keep_mid for layer in range(len(kept.layers))}
    every |= {("mlp.hook_out", layer): keep_out for layer in range(len(kept.layers))}
    for site, visit in (visits or {}).items():  # behind those that keep, so that mlp_out is the model's own
        for place in ((site, layer) for layer in range(len(kept.layers))):
            every[place] = in_turn(every.get(place), kept.noting(visit, dtype))
    final = ModelRun(parts, every, norms=kept.norm, tape=tape)(ids).final[0]
    result = _assemble(parts, ids, kept, tape, final)
    _require_finite(result)
    _require_causal(result)
    return result


@dataclass
class _Kept:
    """What a pass leaves behind."""

    layers: list[LayerCapture]
    first: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) what enters the first layer
    final_inverse_sigma: Tensor = field(default_factory=lambda: torch.empty(0))  # (P,)

    def noting(self, visit: Visit, dtype: torch.dtype) -> Visit:
        """An intervention's visit, what it adds kept."""

        def noted(layer: int, given_1PD: Tensor) -> Tensor | None:
            new = visit(layer, given_1PD)
            if new is not None:
                self.layers[layer].added = (new.reshape(given_1PD.shape).to(dtype) - given_1PD.to(dtype))[0].detach()
            return new

        return noted

    def norm(self, layer: int, name: str, norm: Norm, x_PD: Tensor) -> FrozenNorm:
        """Norms react, and their scales are kept."""
        scale_P = norm.parameters.inverse_sigma(x_PD)
        if name == FINAL_NORM:
            self.final_inverse_sigma = scale_P
        else:
            self.layers[layer].inverse_sigma[name] = scale_P
        return norm.parameters.freeze(scale_P)


@plain_torch()
def logits_at(parts: ModelParts, final_nD: Tensor, softcap: bool = True) -> Tensor:
    """Logits (n, V) of final-norm outputs (n, D), in the compute dtype; differentiable if these are."""
    with torch.set_grad_enabled(final_nD.requires_grad):
        logits = parts.unembed(final_nD.to(next(parts.unembed.parameters()).dtype)).to(parts.compute_dtype)
        cap = final_softcap(parts)
        return torch.tanh(logits / cap) * cap if softcap and cap else logits


def final_softcap(parts: ModelParts) -> float | None:
    """The cap of the logits, unless the calling context goes without (`zero_softcap`)."""
    cap: float | None = config_value(parts.model.config, SOFTCAP, parts.final_softcap)
    return cap


@contextmanager
def zero_softcap(parts: ModelParts) -> Iterator[None]:
    """Inside the block, logits of this context, those of the bare model too, are those before the final softcap."""
    with held_by(Holder(parts.model, {SOFTCAP: None})):
        yield


def check_length(parts: ModelParts, ids: Tensor, new_tokens: int = 1) -> None:
    """Refuse a prompt that is empty, too long for the model, or outside its vocabulary. new_tokens: to be generated; the
    last one is not read again.
    """
    n, limit = int(ids.shape[0]), parts.context_length
    if limit is not None and n > limit:
        raise InputError(f"prompt has {n} tokens, but the model's context length is {limit}. Shorten the prompt.")
    if limit is not None and n + new_tokens - 1 > limit:
        raise InputError(
            f"{new_tokens} new tokens behind a prompt of {n} do not fit into the model's context of {limit}; "
            f"at most {limit - n + 1} do (max_new_tokens)"
        )
    if n and (int(ids.min()) < 0 or int(ids.max()) >= parts.config.d_vocab):
        raise InputError(
            f"token ids span {int(ids.min())}..{int(ids.max())}, but the model's vocabulary is 0..{parts.config.d_vocab - 1}. "
            "Use the model's own tokenizer."
        )


def _assemble(parts: ModelParts, ids: Tensor, kept: _Kept, tape: AttentionTape, final_PD: Tensor) -> PromptCapture:
    resid, positions = kept.first, parts.position_vectors(len(ids))
    if len(tape.patterns) + len(tape.scores) != len(parts.layers):
        raise UnsupportedModelError(
            f"{len(tape.patterns) + len(tape.scores)} of the {len(parts.layers)} layers of this "
            f"{parts.architecture.model_type} call transformers' attention interface, through which patterns are read; a model "
            "with attention of its own cannot be traced"
        )
    return PromptCapture(
        ids=ids.detach().cpu(),
        embedding=resid if positions is None else resid - positions,
        position_embedding=positions,
        layers=kept.layers,
        patterns=[tape.patterns[layer] for layer in range(len(tape.patterns))],
        scores=[tape.scores[layer] for layer in range(len(tape.scores))],
        final_inverse_sigma=kept.final_inverse_sigma,
        final=final_PD,
    )


def _require_causal(captured: PromptCapture) -> None:
    """No token looks at a later one, not even a little."""
    for layer, pattern in enumerate(captured.patterns):
        if pattern.triu(1).any():
            raise UnsupportedModelError(f"a token attends to later ones at layer {layer}: {LOOKS_AHEAD}")


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
