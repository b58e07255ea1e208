"""Specification of `contract_`: one dot product per (row, source)."""

from __future__ import annotations

from torch import Tensor


def contract(out_TN: Tensor, g_TPD: Tensor, source_nD: Tensor, source_ptr: Tensor, column: Tensor) -> Tensor:
    """A new tensor with the products added. Shapes as in `circuit_tracer.kernels.contract.contract_`."""
    result = out_TN.clone()
    for position in range(g_TPD.shape[1]):
        for offset, source in enumerate(range(int(source_ptr[position]), int(source_ptr[position + 1]))):
            for row in range(g_TPD.shape[0]):
                result[row, int(column[position]) + offset] += g_TPD[row, position] @ source_nD[source]
    return result
