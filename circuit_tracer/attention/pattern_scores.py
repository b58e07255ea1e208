"""What attention patterns are like: scores of a head, summed over sequences. docs/how-to/heads.md defines each by a formula.

They are HeadVis's, to the letter where it has them: sums over all tokens of all sequences, over the number of tokens.

Letters: B sequences, L layers, H heads, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun

PATTERN_NUMBERS = 2**25  # of the patterns of one layer, at once
WEAK = 0.01  # attention below this counts as none for the induction score


class Score(NamedTuple):
    """A column: what it is, in a few words; its name in HeadVis's files; what it lies between, where that is bounded."""

    what: str
    headvis: str
    bounds: tuple[float, float] | None = None


SCORES: dict[str, Score] = {
    "induction": Score("attention to tokens that followed an earlier equal token", "induction_score", (0, 1)),
    "previous_token": Score("attention to the token before", "prev_token_score", (0, 1)),
    "duplicate_token": Score("attention to earlier equal tokens", "duplicate_token_score", (0, 1)),
    "self": Score("attention to the token itself", "self_attention_score", (0, 1)),
    "entropy": Score("entropy of a row of the pattern, in nats", "pattern_entropy"),
    "distance": Score("how many tokens back the head looks", "qk_distance"),
    "distance_variance": Score("variance of the distance", "qk_distance_variance"),
    "ov_copying": Score("raising the logit of the token that is read", "ov_copying", (-1, 1)),
    "ablation": Score("loss that is added without the head, in nats", "ablation_loss_change"),
}
_OF_PATTERNS = ("self", "previous_token", "distance", "distance_squared", "duplicate_token", "induction", "entropy")


@dataclass
class PatternSums:
    """Sums over sequences, added up as they come. of: by name, (L, H) float64. peaks: of each sequence, (L, H) float32, the
    largest attention, position 0 left out as query and as key.
    """

    n_layers: int
    n_heads: int
    tokens: int = 0
    sequences: int = 0
    repeated: int = 0  # queries with an earlier equal token
    of: dict[str, Tensor] = field(default_factory=dict)
    peaks: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.n_layers, self.n_heads)
        self.of = {name: torch.zeros(shape, dtype=torch.float64) for name in _OF_PATTERNS}

    def read(self, parts: ModelParts, ids_BT: Tensor) -> None:
        """Run the model on sequences of one length, at least 2, and add what their patterns are like.

        The patterns of one layer exist at a time. Raises NumericalError where they are not finite.
        """
        places = _Places.of(ids_BT.to(parts.device))
        peaks_BLH = torch.zeros(len(ids_BT), self.n_layers, self.n_heads)

        def visit(layer: int, pattern_BHTT: Tensor) -> None:
            for name, sum_H in places.sums(pattern_BHTT).items():
                if not bool(sum_H.isfinite().all()):
                    raise NumericalError(
                        f"attention patterns of layer {layer} are not finite. Check the model's weights, or load it in "
                        "float32 instead of float16."
                    )
                self.of[name][layer] += sum_H.double().cpu()
            peaks_BLH[:, layer] = pattern_BHTT[..., 1:, 1:].amax((-2, -1)).float().cpu()

        ModelRun(parts, {"attn.hook_pattern": visit})(ids_BT)
        self.tokens += ids_BT.numel()
        self.sequences += len(ids_BT)
        self.repeated += places.repeated
        self.peaks += peaks_BLH.unbind()

    def scores(self) -> dict[str, Tensor]:
        """By name, (L, H) float64; NaN where there is nothing to average over."""
        mean = {name: self.of[name] / self.tokens for name in ("self", "entropy", "distance", "distance_squared")}
        squared = mean.pop("distance_squared")
        return {
            **mean,
            "distance_variance": squared - mean["distance"] ** 2,
            "previous_token": self.of["previous_token"] / (self.tokens - self.sequences),
            **{name: self.of[name] / self.repeated for name in ("duplicate_token", "induction")},
        }


def rows_at_once(parts: ModelParts, length: int, batch_tokens: int) -> int:
    """How many sequences of a length the model reads together, so that the patterns of a layer stay small."""
    return max(1, min(batch_tokens // length, PATTERN_NUMBERS // (parts.config.n_heads * length**2)))


class _Places(NamedTuple):
    """Which entries of the patterns of a batch count for what."""

    fixed: Tensor  # (T * T, 4): the diagonal, that below it, the distance, its square
    duplicate: Tensor  # (B, T * T): the key is an earlier token equal to the query's
    induction: Tensor  # (B, T * T): it is the token behind one
    repeated: int

    @classmethod
    def of(cls, ids_BT: Tensor) -> _Places:
        place = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        distance = (place[:, None] - place).abs()
        fixed = torch.stack([distance == 0, place[:, None] - place == 1, distance, distance**2], dim=-1)
        earlier = (ids_BT[:, :, None] == ids_BT[:, None, :]).tril(-1)
        behind = earlier.roll(1, -1)  # the last key is never earlier, so that none comes round to the first
        return cls(
            fixed.flatten(0, 1).float(),
            earlier.flatten(1).float(),
            behind.flatten(1).float(),
            int(earlier.any(-1).sum()),
        )

    def sums(self, pattern_BHTT: Tensor) -> dict[str, Tensor]:
        """By name, (H,)."""
        flat = pattern_BHTT.flatten(2)
        of_all = (flat @ self.fixed.to(flat.dtype)).sum(0)  # (H, 4)
        strong = flat * (flat >= WEAK)
        return {
            **dict(zip(_OF_PATTERNS[:4], of_all.unbind(-1), strict=True)),
            "duplicate_token": torch.einsum("bhn,bn->h", flat, self.duplicate.to(flat.dtype)),
            "induction": torch.einsum("bhn,bn->h", strong, self.induction.to(flat.dtype)),
            "entropy": torch.special.entr(flat).sum((0, 2)),
        }
