"""Contract rows of gradients with the write vectors of sources, grouped by position (derivation and costs: README.md).

Letters: T rows in flight, P positions, D d_model, n sources that write here, N columns of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def contract_(
    out_TN: Tensor, g_TPD: Tensor, source_nD: Tensor, source_ptr: Sequence[int], column: Sequence[int]
) -> None:
    """out[t, column[p] + i] += <g[t, p], source[source_ptr[p] + i]> for every position p and source i there, in place.

    out_TN: (T, N). g_TPD: (T, P, D). source_nD: (n, D), sorted by position. source_ptr: P + 1 offsets into it (more are
    ignored: rows that never reach later positions need not look at them). column: first column of each position. All of one
    floating dtype; products accumulate in it.
    """
    if g_TPD.shape[0] == 0:
        return
    for position in range(g_TPD.shape[1]):
        start, stop = source_ptr[position], source_ptr[position + 1]
        if stop > start:
            first = column[position]
            out_TN[:, first : first + stop - start].addmm_(g_TPD[:, position], source_nD[start:stop].T)
