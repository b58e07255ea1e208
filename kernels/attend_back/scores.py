"""What a frozen attention pattern is made of, when it is too large to keep: queries, keys and the log-sum-exp.

    pattern[h, q, k] = exp(cap(scaling * <query[h, q], key[kv(h), k]>) - lse[h, q]) * key_scale[k]   for first[q] <= k <= q

and 0 elsewhere, with cap(s) = softcap * tanh(s / softcap), or s. Attention sinks are inside the log-sum-exp, sliding windows
and chunks inside `first`. (H + H_kv) P d_head + H P numbers, instead of H P^2.

Letters: P positions, H heads, K key/value heads, d d_head, G = H / K heads of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from circuit_tracer.kernels.device import sent


@dataclass(frozen=True)
class Scores:
    """Causal attention of one layer. `first` does not fall, and first[q] <= q."""

    query_HPd: Tensor
    key_KPd: Tensor
    lse_HP: Tensor  # a factor c[q] of whole rows of the pattern is part of it: lse - log c
    first_P: Tensor  # int64, on the host: the first key that each query sees, which says what is multiplied at all
    scaling: float
    softcap: float | None = None
    key_scale_P: Tensor | None = None  # a factor of whole columns
    _there: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)  # `first` on devices

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.query_HPd.shape[0])

    @property
    def n_pos(self) -> int:
        """P."""
        return int(self.query_HPd.shape[1])

    def scaled(self, query_P: Tensor | None, key_P: Tensor | None) -> Scores:
        """The pattern with its rows times query (P,) (> 0) and its columns times key (P,)."""
        lse = self.lse_HP if query_P is None else self.lse_HP - query_P.log()
        if key_P is not None and self.key_scale_P is not None:
            key_P = key_P * self.key_scale_P
        return replace(self, lse_HP=lse, key_scale_P=self.key_scale_P if key_P is None else key_P)

    def between(self, start: int, stop: int) -> Scores:
        """Attention among positions start .. stop - 1 alone, which become 0, 1, ..."""
        here = slice(start, stop)
        return replace(
            self,
            query_HPd=self.query_HPd[:, here],
            key_KPd=self.key_KPd[:, here],
            lse_HP=self.lse_HP[:, here],
            first_P=(self.first_P[here] - start).clamp_min(0),
            _there={},
            key_scale_P=None if self.key_scale_P is None else self.key_scale_P[here],
        )

    def of_head(self, head: int) -> Scores:
        """Those of one head."""
        key = head * int(self.key_KPd.shape[0]) // self.n_heads
        return replace(
            self,
            query_HPd=self.query_HPd[head : head + 1],
            key_KPd=self.key_KPd[key : key + 1],
            lse_HP=self.lse_HP[head : head + 1],
        )

    def first_on(self, device: torch.device) -> Tensor:
        """`first` (P,) on a device, which is given it once."""
        if device not in self._there:
            self._there[device] = sent(self.first_P, device)
        return self._there[device]

    def queries_of(self, start: int, stop: int, n_pos: int) -> tuple[int, int]:
        """The queries below `n_pos` that see any key of start .. stop - 1: a range, since `first` does not fall."""
        last = int(torch.searchsorted(self.first_P, stop))
        return start, max(start, min(n_pos, last))

    def keys_of(self, start: int, stop: int) -> tuple[int, int]:
        """The keys that any query of start .. stop - 1 sees."""
        return int(self.first_P[start]), stop

    def tile(self, kv_head: int, queries: slice, keys: slice) -> Tensor:
        """The pattern of the G heads of a group, (G, queries, keys), made anew."""
        groups = self.n_heads // int(self.key_KPd.shape[0])
        heads = slice(kv_head * groups, (kv_head + 1) * groups)
        query, key = self.query_HPd[heads, queries], self.key_KPd[kv_head, keys].T.expand(groups, -1, -1)
        lse = self.lse_HP[heads, queries, None]
        if self.softcap:
            s = torch.matmul(query, key).mul_(self.scaling / self.softcap).tanh_().mul_(self.softcap).sub_(lse).exp_()
        else:
            s = torch.baddbmm(-lse, query, key, alpha=self.scaling).exp_()
        self._hide_(s, queries, keys)
        return s if self.key_scale_P is None else s.mul_(self.key_scale_P[keys])

    def _hide_(self, s_GQK: Tensor, queries: slice, keys: slice) -> None:
        """Zero where a query does not see a key; nothing is looked at where each sees all."""
        if queries.start >= keys.stop - 1 and int(self.first_P[queries.stop - 1]) <= keys.start:
            return
        place = torch.arange(keys.start, keys.stop, device=s_GQK.device)
        query = torch.arange(queries.start, queries.stop, device=s_GQK.device)[:, None]
        first = self.first_on(s_GQK.device)[queries, None]
        s_GQK.masked_fill_((place > query) | (place < first), 0)

    def pattern(self) -> Tensor:
        """All of it, (H, P, P)."""
        every = slice(0, self.n_pos)
        return torch.cat([self.tile(head, every, every) for head in range(int(self.key_KPd.shape[0]))])
