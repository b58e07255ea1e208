"""Attention patterns of several prompts that lie side by side: no token of one looks at a token of another.

Letters: B prompts, P positions of the longest, n = sum of their own positions, H heads, K key/value heads, d d_head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SidePatterns:
    """One layer's. Rows are queries; what is beyond the end of a prompt is nobody's."""

    pattern_BHPP: Tensor
    row_n: Tensor  # where the positions of the prompts are among the B * P

    def of_prompt(self, number: int, n_pos: int) -> Tensor:
        """The pattern (H, n_pos, n_pos) of one prompt."""
        return self.pattern_BHPP[number, :, :n_pos, :n_pos]

    def mix(self, values_nKd: Tensor) -> Tensor:
        """Values of each key position, mixed by the patterns and joined over heads: (n, H * d)."""
        n_prompts, n_heads, n_pos, _ = self.pattern_BHPP.shape
        padded = self.padded(values_nKd).repeat_interleave(n_heads // values_nKd.shape[1], dim=2)
        mixed = self.pattern_BHPP.matmul(padded.transpose(1, 2)).transpose(1, 2)
        return mixed.reshape(n_prompts * n_pos, -1)[self.row_n]

    def scaled(self, query_n: Tensor | None, key_n: Tensor | None) -> Tensor:
        """All patterns (B, H, P, P) with their rows times query (n,) and their columns times key (n,)."""
        pattern = self.pattern_BHPP
        pattern = pattern if key_n is None else pattern * self.padded(key_n)[:, None, None, :]
        return pattern if query_n is None else pattern * self.padded(query_n)[:, None, :, None]

    def padded(self, values_n: Tensor) -> Tensor:
        """(B, P, ...), zero beyond the end of a prompt."""
        n_prompts, _, n_pos, _ = self.pattern_BHPP.shape
        padded = values_n.new_zeros(n_prompts * n_pos, *values_n.shape[1:])
        padded[self.row_n] = values_n
        return padded.view(n_prompts, n_pos, *values_n.shape[1:])
