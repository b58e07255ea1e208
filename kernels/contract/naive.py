"""Specification of `contract_` and `contract_rows_`: one dot product per (row, source)."""

from __future__ import annotations

from torch import Tensor

from circuit_tracer.kernels.contract.addressed import AddressedRows


def contract(out_TN: Tensor, g_TPD: Tensor, source_nD: Tensor, source_ptr: Tensor, column: Tensor) -> Tensor:
    """A new tensor with the products added. Shapes as in `circuit_tracer.kernels.contract.contract_`."""
    result = out_TN.clone()
    for position in range(g_TPD.shape[1]):
        for offset, source in enumerate(range(int(source_ptr[position]), int(source_ptr[position + 1]))):
            for row in range(g_TPD.shape[0]):
                result[row, int(column[position]) + offset] += g_TPD[row, position] @ source_nD[source]
    return result


def contract_rows(out_TN: Tensor, g_TPD: Tensor, sources: AddressedRows) -> Tensor:
    """A new tensor with the products added. Shapes as in `circuit_tracer.kernels.contract.contract_rows_`."""
    result = out_TN.clone()
    for position in range(g_TPD.shape[1]):
        for i in range(sources.ptr[position], sources.ptr[position + 1]):
            source_D = sources.tables[int(sources.table[i])][int(sources.row[i])].to(g_TPD.dtype)
            for row in range(g_TPD.shape[0]):
                result[row, int(sources.column[i])] += sources.scale[i] * (g_TPD[row, position] @ source_D)
    return result
