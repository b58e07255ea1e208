"""circuit-tracer's `AttributionTargets`: targets worked out from logits and an unembedding alone, without a model.

`attribute` does not use it: it has targets of more kinds (targets.py). Letters: K targets, D d_model, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.targets import CustomTarget, LogitTarget

TargetSpec = CustomTarget | tuple[str, float, Tensor]


class TargetTypeError(InputError, TypeError):
    """A target of a wrong type; a TypeError too, which is what circuit-tracer raises."""


class TargetValueError(InputError, ValueError):
    """A target that cannot be; a ValueError too, which is what circuit-tracer raises."""


class AttributionTargets:
    """Targets with their weights (K,) and vectors (K, D).

    Args:
        attribution_targets: None for the most probable tokens (at most `max_n_logits`, until `desired_logit_prob` is
            covered), a tensor of ids, texts of one token each, or `CustomTarget`s.
        logits: (V,).
        unembed_proj: (D, V) or (V, D).
        tokenizer: Its tokenizer.
        max_n_logits: Most tokens that become targets, where none are given.
        desired_logit_prob: Their probability in all at which to stop.

    Raises:
        TargetValueError: For targets that do not exist.
        TargetTypeError: For what is no target.
    """

    def __init__(
        self,
        attribution_targets: Sequence[str] | Sequence[TargetSpec] | Tensor | None,
        logits: Tensor,
        unembed_proj: Tensor,
        tokenizer: Any,
        *,
        max_n_logits: int = 10,
        desired_logit_prob: float = 0.95,
    ) -> None:
        self.tokenizer = tokenizer
        if attribution_targets is not None and not isinstance(attribution_targets, Tensor | Sequence):
            raise TargetTypeError(
                "attribution_targets must be None, torch.Tensor, Sequence[str] or Sequence[TargetSpec], "
                f"got {type(attribution_targets)}"
            )
        if isinstance(attribution_targets, Sequence) and not attribution_targets:
            raise TargetValueError("attribution_targets sequence cannot be empty; None means the most probable tokens")
        if isinstance(attribution_targets, Sequence) and not isinstance(attribution_targets[0], str):
            self._take_custom([_custom(target) for target in attribution_targets], len(logits))
            return
        if attribution_targets is None:
            ids, _, _ = compute_salient_logits(
                logits, unembed_proj, max_n_logits=max_n_logits, desired_logit_prob=desired_logit_prob
            )
        elif isinstance(attribution_targets, Tensor):
            ids = attribution_targets
        else:
            ids = torch.tensor([_single_id(str(text), tokenizer) for text in attribution_targets])
        if bool(((ids < 0) | (ids >= len(logits))).any()):
            raise TargetValueError(f"Token indices must be in range [0, {len(logits)}), got {ids.tolist()}")
        self.logit_targets = [LogitTarget(tokenizer.decode(token), token) for token in ids.tolist()]
        self.logit_probabilities = torch.softmax(logits, dim=-1)[ids]
        self.logit_vectors = _demeaned(ids, len(logits), unembed_proj)

    def _take_custom(self, targets: list[CustomTarget], d_vocab: int) -> None:
        self.logit_targets = [LogitTarget(target.token_str, d_vocab + place) for place, target in enumerate(targets)]
        self.logit_probabilities = torch.tensor([target.prob for target in targets])
        self.logit_vectors = torch.stack([target.vec for target in targets])

    def __len__(self) -> int:
        return len(self.logit_targets)

    def __repr__(self) -> str:
        shown = ", ".join(str(target) for target in self.logit_targets[:3])
        return f"AttributionTargets(n={len(self)}, targets=[{shown}{', ...' if len(self) > 3 else ''}])"

    @property
    def tokens(self) -> list[str]:
        """The texts of the targets."""
        return [target.token_str for target in self.logit_targets]

    @property
    def token_ids(self) -> Tensor:
        """(K,) ids, virtual ones for custom targets."""
        return torch.tensor([target.vocab_idx for target in self.logit_targets], device=self.logit_probabilities.device)

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return int(self.tokenizer.vocab_size)

    def to(self, device: str | torch.device) -> AttributionTargets:
        """Move weights and vectors, in place."""
        self.logit_probabilities = self.logit_probabilities.to(device)
        self.logit_vectors = self.logit_vectors.to(device)
        return self


@torch.no_grad()
def compute_salient_logits(
    logits: Tensor, unembed_proj: Tensor, *, max_n_logits: int = 10, desired_logit_prob: float = 0.95
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids (K,), probabilities (K,), demeaned unembedding rows (K, D)) of the most probable tokens: at most `max_n_logits`,
    and no more than `desired_logit_prob` needs. logits: (V,). unembed_proj: (D, V) or (V, D).
    """
    chosen = torch.topk(torch.softmax(logits, dim=-1), min(max_n_logits, len(logits)))
    before = torch.cumsum(chosen.values, 0) - chosen.values
    count = int((before < desired_logit_prob).sum())
    ids = chosen.indices[:count]
    return ids, chosen.values[:count], _demeaned(ids, len(logits), unembed_proj)


def log_attribution_target_info(targets: AttributionTargets, attribution_targets: Any, logger: logging.Logger) -> None:
    """Log how many targets there are, and their weight in all."""
    kind = "salient logits" if attribution_targets is None else "targets"
    logger.info(f"Using {len(targets)} {kind} with total weight {float(targets.logit_probabilities.sum()):.4f}")


def _demeaned(ids: Tensor, d_vocab: int, unembed_proj: Tensor) -> Tensor:
    rows = unembed_proj if unembed_proj.shape[0] == d_vocab else unembed_proj.T
    return rows[ids] - rows.mean(dim=0)


def _single_id(text: str, tokenizer: Any) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise TargetValueError(
            f"String token {text!r} encoded to {len(ids)} tokens (IDs: {ids}); each must be exactly one"
        )
    return int(ids[0])


def _custom(target: Any) -> CustomTarget:
    if not isinstance(target, tuple):
        raise TargetTypeError(
            f"Sequence elements must be str or TargetSpec (CustomTarget or tuple[str, float, Tensor]), got {type(target)}"
        )
    if len(target) != 3:
        raise TargetValueError(f"Tuple targets must have exactly 3 elements (text, weight, vector), got {len(target)}")
    expected = (("token_str", str, "str"), ("prob", int | float, "int or float"), ("vec", Tensor, "torch.Tensor"))
    for value, (name, kind, said) in zip(target, expected, strict=True):
        if not isinstance(value, kind):
            raise TargetTypeError(f"Custom target {name} must be {said}, got {type(value)}")
    return CustomTarget(target[0], float(target[1]), target[2])
