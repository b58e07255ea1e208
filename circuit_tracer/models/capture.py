"""One forward pass of the model, over one prompt or several, keeping what the frozen network needs (attribution/README.md §2).

Letters: L layers, P positions, D d_model, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError, UnsupportedModelError
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.mixing import NO_SCALES, Scales
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.parts import SOFTCAP, ModelParts, Norm
from circuit_tracer.models.plain import LOOKS_AHEAD
from circuit_tracer.models.run import FINAL_NORM, ModelRun, Place, Visit, in_turn
from circuit_tracer.models.side_patterns import SidePatterns
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.whose import Holder, config_value, held_by


@dataclass
class LayerCapture:
    """What one layer did on the prompt, in the compute dtype."""

    resid_mid: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) what the MLP (or its norm) reads
    mlp_out: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D) before any post norm
    added: Tensor | None = None  # (P, D) what an intervention adds at the dictionary's output hook
    inverse_sigma: dict[str, Tensor] = field(default_factory=dict)  # norm name -> (P,); of each head's values (P, K)
    scales: Scales = NO_SCALES  # of values and of what the heads give, in the compute dtype
    places: dict[str, Tensor] = field(default_factory=dict)  # site -> (P, width), where others were asked for


@dataclass
class PromptCapture:
    """A prompt's forward pass, frozen, or that of several side by side (`capture_several`).

    Tensors are detached and in the compute dtype (float64 or float32).
    """

    ids: Tensor  # (P,)
    embedding: Tensor  # (P, D) token vectors as they enter the first layer (scaled, without positions)
    position_embedding: Tensor | None  # (P, D) absolute positions, where the architecture has them
    layers: list[LayerCapture]
    patterns: list[Tensor]  # L x (H, P, P), or none
    scores: list[Scores]  # what the patterns can be made from, where they are not kept
    final_inverse_sigma: Tensor  # (P,)
    final: Tensor  # (P, D) output of the final norm
    several: list[SidePatterns] = field(default_factory=list)  # L, of several prompts; then there are no other patterns

    @property
    def n_pos(self) -> int:
        """Number of tokens, special ones included."""
        return int(self.ids.shape[0])

    def scales(self, layer: int, name: str, norm: Norm, x_nD: Tensor) -> FrozenNorm:
        """The rule of a pass whose norms keep the scales of this one, for each of its sequences (models/run.py)."""
        scale_P = self.final_inverse_sigma if name == FINAL_NORM else self.layers[layer].inverse_sigma[name]
        return norm.parameters.freeze(scale_P.flatten().repeat(len(x_nD) // scale_P.numel()))

    def replayed(self) -> AttentionTape:
        """For a pass whose attention keeps the patterns of this one."""
        scales = {layer: kept.scales for layer, kept in enumerate(self.layers)}
        return AttentionTape(dict(enumerate(self.patterns)), replay=True, scales=scales)

    def of_prompt(self, number: int, start: int, stop: int) -> PromptCapture:
        """One of several prompts: the one that lies at start .. stop - 1. Views, not copies."""
        here, positions = slice(start, stop), self.position_embedding
        return PromptCapture(
            ids=self.ids[here],
            embedding=self.embedding[here],
            position_embedding=None if positions is None else positions[here],
            layers=[_picked(layer, here) for layer in self.layers],
            patterns=[patterns.of_prompt(number, stop - start) for patterns in self.several],
            scores=[],
            final_inverse_sigma=self.final_inverse_sigma[here],
            final=self.final[here],
        )


@plain_torch()
def capture(
    parts: ModelParts,
    ids: Tensor,
    keep_patterns: bool = True,
    visits: Mapping[str, Visit] | None = None,
    tape: AttentionTape | None = None,
    places: Sequence[str] = (),
) -> PromptCapture:
    """Run the model once on ids (P,) and keep the frozen quantities; attention patterns, or queries, keys and log-sum-exp (not
    of models whose patterns cannot be made from these: theirs are always kept).

    Norms are recomputed in the compute dtype while the model runs, so that the frozen 1/sigma is exactly what the pass used
    (transformers computes them in float32 even in a float64 model). Raises InputError for a prompt beyond the context
    length and NumericalError when activations are not finite.

    visits: of an intervention, by site, which write at the dictionary's output hook only. tape: attention that is replayed.
    places: sites whose activations are kept too.
    """
    check_length(parts, ids)
    recompute = not keep_patterns and not parts.only_keeps_patterns
    kept = _run(parts, ids[None], AttentionTape(recompute=recompute) if tape is None else tape, visits, places)
    result = _assemble(kept, ids, parts.position_vectors(len(ids)), None)
    require_finite(result)
    _require_causal(result)
    return result


@plain_torch()
def capture_several(parts: ModelParts, ids: Sequence[Tensor]) -> PromptCapture:
    """Run the model once on several prompts, each (P_b,), and lay them side by side: n = sum of P_b positions, one prompt's
    behind the other's, L x `SidePatterns`.

    Short ones are filled up at their end, where causal attention never looks from their own tokens, so each has what `capture`
    gives it, up to rounding (the library may multiply more rows in another order). Raises InputError for a prompt that cannot
    be run; whether activations are finite is each prompt's own matter (`require_finite`).
    """
    for each in ids:
        check_length(parts, each)
    n_pos = [len(each) for each in ids]
    padded_BP = torch.stack([torch.cat([each, each[-1:].expand(max(n_pos) - len(each))]) for each in ids])
    kept = _run(parts, padded_BP, AttentionTape(several=True))
    row_n = torch.cat([torch.arange(count) + number * max(n_pos) for number, count in enumerate(n_pos)])
    vectors = parts.position_vectors(max(n_pos))
    place = row_n.to(parts.device)
    result = _assemble(kept, torch.cat(list(ids)), None if vectors is None else vectors[place % max(n_pos)], place)
    _require_causal(result)
    return result


@dataclass
class _Kept:
    """What a pass leaves behind, of B sequences."""

    parts: ModelParts
    tape: AttentionTape
    layers: list[LayerCapture]  # resid_mid and mlp_out (B * P, D), scales (B * P,)
    first: Tensor = field(default_factory=lambda: torch.empty(0))  # (B * P, D) what enters the first layer
    final_inverse_sigma: Tensor = field(default_factory=lambda: torch.empty(0))  # (B * P,)
    final: Tensor = field(default_factory=lambda: torch.empty(0))  # (B * P, D)

    def rows(self, activation_BPD: Tensor) -> Tensor:
        """(B * P, D), in the compute dtype."""
        return activation_BPD.detach().to(self.parts.compute_dtype).flatten(0, 1)

    def noting(self, visit: Visit) -> Visit:
        """An intervention's visit, what it adds kept."""

        def noted(layer: int, given_BPD: Tensor) -> Tensor | None:
            new = visit(layer, given_BPD)
            if new is not None:
                self.layers[layer].added = self.rows(new.reshape(given_BPD.shape)) - self.rows(given_BPD)
            return new

        return noted

    def norm(self, layer: int, name: str, norm: Norm, x_nD: Tensor) -> FrozenNorm:
        """Norms react, and their scales are kept."""
        scale_n = norm.parameters.inverse_sigma(x_nD)
        if name == FINAL_NORM:
            self.final_inverse_sigma = scale_n
        else:
            each_head = name == "value_norm" and self.parts.architecture.value_up is None
            kept_n = scale_n.reshape(-1, self.parts.layers[layer].n_kv) if each_head else scale_n
            self.layers[layer].inverse_sigma[name] = kept_n
        return norm.parameters.freeze(scale_n)


def _run(
    parts: ModelParts,
    ids_BP: Tensor,
    tape: AttentionTape,
    visits: Mapping[str, Visit] | None = None,
    places: Sequence[str] = (),
) -> _Kept:
    """The pass, and all that is kept of it."""
    kept = _Kept(parts, tape, [LayerCapture() for _ in parts.layers])

    def keep_first(layer: int, resid_BPD: Tensor) -> None:
        kept.first = kept.rows(resid_BPD)

    def keep_mid(layer: int, resid_BPD: Tensor) -> None:
        kept.layers[layer].resid_mid = kept.rows(resid_BPD)

    def keep_out(layer: int, out_BPD: Tensor) -> None:
        kept.layers[layer].mlp_out = kept.rows(out_BPD)

    def keep_place(name: str, layer: int, activation: Tensor) -> None:
        kept.layers[layer].places[name] = kept.rows(activation)

    every: dict[Place, Visit] = {("hook_resid_pre", 0): keep_first}
    every |= {("hook_resid_mid", layer): keep_mid for layer in range(len(kept.layers))}
    every |= {("mlp.hook_out", layer): keep_out for layer in range(len(kept.layers))}
    for name in places:
        for place in ((name, layer) for layer in range(len(kept.layers))):
            every[place] = in_turn(every.get(place), partial(keep_place, name))
    for site, visit in (visits or {}).items():  # behind those that keep, so that mlp_out is the model's own
        for place in ((site, layer) for layer in range(len(kept.layers))):
            every[place] = in_turn(every.get(place), kept.noting(visit))
    kept.final = ModelRun(parts, every, norms=kept.norm, tape=tape)(ids_BP).final.flatten(0, 1)
    return kept


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


def _assemble(kept: _Kept, ids_n: Tensor, positions: Tensor | None, place_n: Tensor | None) -> PromptCapture:
    """positions: (n, D), where the architecture has them. place_n: the rows of a pass that are prompts'; None: all of one."""
    parts, tape = kept.parts, kept.tape
    n_layers = len(parts.layers)
    if len(tape.patterns) + len(tape.scores) != n_layers:
        raise UnsupportedModelError(
            f"{len(tape.patterns) + len(tape.scores)} of the {n_layers} layers of this "
            f"{parts.architecture.model_type} call transformers' attention interface, through which patterns are read; a model "
            "with attention of its own cannot be traced"
        )

    def own(rows: Tensor) -> Tensor:
        return rows if place_n is None else rows[place_n]

    resid, layers = own(kept.first), kept.layers
    for layer, scales in tape.scales.items():
        layers[layer].scales = scales
    if place_n is not None:
        layers = [_picked(layer, place_n) for layer in layers]
    patterns = [tape.patterns[layer].to(parts.compute_dtype) for layer in range(len(tape.patterns))]
    return PromptCapture(
        ids=ids_n.detach().cpu(),
        embedding=resid if positions is None else resid - positions,
        position_embedding=positions,
        layers=layers,
        patterns=patterns if place_n is None else [],
        scores=[tape.scores[layer] for layer in range(len(tape.scores))],
        final_inverse_sigma=own(kept.final_inverse_sigma),
        final=own(kept.final),
        several=[] if place_n is None else [SidePatterns(pattern, place_n) for pattern in patterns],
    )


def _picked(layer: LayerCapture, which: Tensor | slice) -> LayerCapture:
    """What it did at some positions."""
    scales = {name: scale[which] for name, scale in layer.inverse_sigma.items()}
    return LayerCapture(
        layer.resid_mid[which], layer.mlp_out[which], inverse_sigma=scales, scales=layer.scales.at(which)
    )


def _require_causal(captured: PromptCapture) -> None:
    """No token looks at a later one, not even a little."""
    patterns = captured.patterns or [each.pattern_BHPP for each in captured.several]
    for layer, ahead in enumerate(_answers([pattern.triu(1).any() for pattern in patterns])):
        if ahead:
            raise UnsupportedModelError(f"a token attends to later ones at layer {layer}: {LOOKS_AHEAD}")


def _answers(asked: list[Tensor]) -> list[bool]:
    """What a device answers to several questions, heard at once."""
    return [bool(answer) for answer in torch.stack(asked).tolist()] if asked else []


def require_finite(captured: PromptCapture) -> None:
    layers = [torch.isfinite(layer.resid_mid).all() & torch.isfinite(layer.mlp_out).all() for layer in captured.layers]
    *of_layers, at_end = _answers([*layers, torch.isfinite(captured.final).all()])
    for index, finite in enumerate(of_layers):
        if not finite:
            raise NumericalError(
                f"the model's activations at layer {index} are not finite on this prompt. Check the model's weights, or load "
                "it in float32 instead of float16."
            )
    if not at_end:
        raise NumericalError(
            "the model's final residual stream is not finite on this prompt. Check the model's weights."
        )
