"""What speed.py measures: each operation at real sizes, by this engine and by torch's own for the same result.

A problem knows its operations (multiplications and additions) and the bytes that no implementation can avoid, every input read
and every result written once; a decoder's rows are read once for each entry, as if no cache held them.

Letters: B tokens, F features, D width, C columns of a decoder row, n entries; T rows, P positions, H heads, K kv heads,
d d_head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.kernels.attend_back import Scores, attend_back_, attend_back_recomputed_
from circuit_tracer.kernels.contract import contract_, contract_rows_
from circuit_tracer.kernels.contract.addressed import AddressedRows
from circuit_tracer.kernels.decode import decode_, gradients
from circuit_tracer.kernels.encode import encode, encode_top_k
from circuit_tracer.kernels.sparse_activations import SparseActivations


@dataclass(frozen=True)
class Size:
    """One model's layer, and how much of it at once."""

    name: str
    width: int
    layers: int  # that a source writes to
    features: int
    batch: int
    active: int  # of a token and layer
    rows: int  # of gradients in flight
    positions: int
    heads: int
    kv_heads: int
    d_head: int


CPU = [
    Size("GPT-2 small", 768, 12, 8192, 1024, 16, 256, 64, 12, 12, 64),
    Size("SmolLM2-135M", 576, 30, 2048, 1024, 16, 256, 64, 9, 3, 64),
]
CUDA = [
    Size("GPT-2 small", 768, 12, 32768, 4096, 16, 256, 128, 12, 12, 64),
    Size("Gemma-2-2B", 2304, 1, 16384, 4096, 64, 256, 512, 8, 4, 256),
]


@dataclass(frozen=True)
class Problem:
    """One operation: ways to do it, ours first; all give the same up to `tolerance` (relative RMS error)."""

    name: str
    flops: float
    bytes: float
    bound: str  # "memory" or "products": which ceiling it is held to
    ways: dict[str, Callable[[], Any]]
    tolerance: float
    product: str = "float32"  # the number format of its products, whose rate is the ceiling


def problems(size: Size, device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    """All operations of a size; made one after the other, since a GPU's memory holds few."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    for input_dtype in dict.fromkeys((torch.float32, dtype)):
        yield from _encoders(size, normal, input_dtype, dtype)
    yield from _decoders(size, normal, zipf(size, generator, device), dtype)
    for input_dtype in dict.fromkeys((torch.float32, dtype)):
        yield _contraction(size, normal, generator, input_dtype, dtype)
    yield from _attention(size, normal)


def zipf(size: Size, generator: torch.Generator, device: torch.device) -> SparseActivations:
    """Active features whose frequencies fall like one over their rank, as those of language do: a few on every token."""
    frequency = 1 / torch.arange(1, size.features + 1, device=device, dtype=torch.float32)
    shuffled = frequency[torch.randperm(size.features, generator=generator, device=device)]
    feature = torch.stack(
        [torch.multinomial(shuffled, size.active, generator=generator).sort().values for _ in range(size.batch)]
    ).flatten()
    row_ptr = torch.arange(size.batch + 1, device=device) * size.active
    value = torch.rand(len(feature), generator=generator, device=device) + 0.1
    return SparseActivations(row_ptr, feature, value, size.features)


def _encoders(
    size: Size, normal: Callable[..., Tensor], input_dtype: torch.dtype, dtype: torch.dtype
) -> Iterator[Problem]:
    x_BD, weight_FD = normal(size.batch, size.width, dtype=input_dtype), normal(size.features, size.width, dtype=dtype)
    bias_F = normal(size.features)
    half = input_dtype.itemsize == 2

    def product(x_BD: Tensor) -> Tensor:
        if half:
            return torch.mm(x_BD, weight_FD.T, out_dtype=torch.float32).add_(bias_F)
        return torch.addmm(bias_F, x_BD, weight_FD.to(x_BD.dtype).T)

    sample_BF = product(x_BD[:128])
    quantile = sample_BF.flatten().kthvalue(sample_BF.numel() - len(sample_BF) * size.active).values
    cut_F = quantile.expand(size.features).contiguous()
    moved = nbytes(x_BD, weight_FD, bias_F, cut_F) + 12.0 * size.batch * size.active
    row_ptr = torch.arange(size.batch + 1, device=x_BD.device) * size.active

    def above() -> SparseActivations:
        pre_BF = product(x_BD)
        row, feature = (pre_BF > cut_F).nonzero(as_tuple=True)
        return SparseActivations.from_entries(row, feature, pre_BF[row, feature], size.batch, size.features)

    def largest() -> SparseActivations:
        value, feature = torch.topk(product(x_BD), size.active, dim=1, sorted=False)
        order = feature.argsort(1)
        return SparseActivations(
            row_ptr, feature.gather(1, order).flatten(), value.gather(1, order).flatten(), size.features
        )

    flops, kind, suffix = 2.0 * size.batch * weight_FD.numel(), str(dtype)[6:], ", bfloat16 x" if half else ""
    # entries within rounding of the cut may be judged differently
    ways = {"ours": lambda: encode(x_BD, weight_FD, bias_F, cut_F), "matmul + nonzero": above}
    yield Problem("encode" + suffix, flops, moved, "products", ways, 1e-2, kind)
    ways = {"ours": lambda: encode_top_k(x_BD, weight_FD, bias_F, size.active), "matmul + topk": largest}
    yield Problem("encode_top_k" + suffix, flops, moved, "products", ways, 1e-2, kind)


def _decoders(
    size: Size, normal: Callable[..., Tensor], entries: SparseActivations, dtype: torch.dtype
) -> Iterator[Problem]:
    width = size.layers * size.width
    weight_FC, grad_BC = normal(size.features, width, dtype=dtype), normal(size.batch, width)
    out_BC, out_FC = torch.zeros_like(grad_BC), torch.empty(size.features, width, device=grad_BC.device)
    n = len(entries.feature)
    shape = (size.batch, size.features)
    matrix = csr(entries.row_ptr, entries.feature, entries.value, shape)
    wide_FC = weight_FC.float()  # what torch's own sparse products ask for
    by_feature = entries.columns
    transposed = csr(by_feature.feature_ptr, by_feature.row, entries.value[by_feature.entry], shape[::-1])

    def ours_forward() -> Tensor:
        decode_(out_BC.zero_(), entries, weight_FC)
        return out_BC

    def bags() -> Tensor:
        return functional.embedding_bag(
            entries.feature,
            wide_FC,
            entries.row_ptr,
            per_sample_weights=entries.value,
            mode="sum",
            include_last_offset=True,
        )

    ways: dict[str, Callable[[], Any]] = {
        "ours": ours_forward,
        "embedding_bag": bags,
        "sparse CSR": lambda: matrix @ wide_FC,
    }
    read = float(n * width * weight_FC.element_size())
    yield Problem("decode", 2.0 * n * width, read + 3 * nbytes(out_BC), "memory", ways, 1e-5)

    def ours_backward() -> tuple[Tensor, Tensor]:
        return gradients(grad_BC, entries, weight_FC, out_FC)

    def csr_backward() -> tuple[Tensor, Tensor]:
        values = (grad_BC[entries.row] * wide_FC[entries.feature]).sum(1)
        return values, transposed @ grad_BC

    rows = 4.0 * n * width + nbytes(out_FC)
    touched = len(torch.unique(entries.feature)) * width * weight_FC.element_size()
    ways = {"ours": ours_backward, "gathered dots + sparse CSR": csr_backward}
    yield Problem("gradients", 4.0 * n * width, rows + touched, "memory", ways, 1e-5)


def _contraction(
    size: Size,
    normal: Callable[..., Tensor],
    generator: torch.Generator,
    input_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Problem:
    """Sources of a layer at every position, from two source layers' decoders."""
    device, n = generator.device, size.positions * size.active * 4
    g_TPD = normal(size.rows, size.positions, size.width, dtype=input_dtype)
    tables = [normal(size.features, size.width, dtype=dtype) for _ in range(2)]
    row = torch.randint(size.features, (n,), generator=generator, device=device)
    table = torch.arange(n, device=device) % 2
    scale, column = normal(n).abs(), torch.arange(n, device=device)
    ptr = [p * size.active * 4 for p in range(size.positions + 1)]
    sources = AddressedRows(tables, table, row, scale, column, ptr)
    source_nD = (torch.stack([part[row] for part in tables])[table, column].float() * scale[:, None]).to(input_dtype)
    position = torch.arange(size.positions, device=device).repeat_interleave(size.active * 4)

    def into(call: Callable[..., None], *args: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            out_TN = torch.zeros(size.rows, n, device=device)
            call(out_TN, g_TPD, *args)
            return out_TN

        return run

    def gathered() -> Tensor:
        block = max(1, 2**28 // (size.rows * size.width))
        parts = zip(position.split(block), source_nD.split(block), strict=True)
        return torch.cat([torch.einsum("tnd,nd->tn", g_TPD[:, at], rows).float() for at, rows in parts], 1)

    ways = {
        "ours": into(contract_rows_, sources),
        "ours, rows side by side": into(contract_, source_nD, ptr, ptr[:-1]),
        "gather + einsum": gathered,
    }
    moved = nbytes(g_TPD) + n * size.width * tables[0].element_size() + 3.0 * 4 * size.rows * n
    name, tolerance = ("contract", 1e-5) if input_dtype is torch.float32 else ("contract, bfloat16 g", 1e-2)
    return Problem(name, 2.0 * size.rows * n * size.width, moved, "products", ways, tolerance, str(dtype)[6:])


def _attention(size: Size, normal: Callable[..., Tensor]) -> Iterator[Problem]:
    n_pos, n_out, n_value = size.positions, size.heads * size.d_head, size.kv_heads * size.d_head
    g_TPD = normal(size.rows, n_pos, size.width)
    output_DO, value_VD = normal(size.width, n_out) / n_out**0.5, normal(n_value, size.width) / size.width**0.5
    query, key = normal(size.heads, n_pos, size.d_head), normal(size.kv_heads, n_pos, size.d_head)
    groups, scaling = size.heads // size.kv_heads, size.d_head**-0.5
    s = torch.einsum("hqd,hkd->hqk", query, key.repeat_interleave(groups, 0)) * scaling
    s.masked_fill_(torch.ones(n_pos, n_pos, device=s.device).triu(1).bool(), -torch.inf)
    lse_HP, pattern_HPP = torch.logsumexp(s, 2), torch.softmax(s, 2)
    scores = Scores(query, key, lse_HP, torch.zeros(n_pos, dtype=torch.int64), scaling)

    def added(call: Callable[..., None], what: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            g = g_TPD.clone()
            call(g, what, output_DO, value_VD)
            return g

        return run

    def einsums() -> Tensor:
        z = (g_TPD @ output_DO).unflatten(2, (size.kv_heads, groups, size.d_head))
        mixed = torch.einsum("cgqk,tqcgd->tkcd", pattern_HPP.unflatten(0, (size.kv_heads, groups)), z)
        return g_TPD + mixed.flatten(2) @ value_VD

    products = 2.0 * size.rows * n_pos * size.width * (n_out + n_value)
    mixing = 2.0 * size.rows * size.heads * size.d_head * n_pos * (n_pos + 1) / 2  # below the diagonal
    ways = {"ours": added(attend_back_, pattern_HPP), "einsum": einsums}
    moved = 2.0 * nbytes(g_TPD) + nbytes(output_DO, value_VD)
    yield Problem("attend_back", products + mixing, moved + nbytes(pattern_HPP), "products", ways, 1e-5)
    ways = {"ours": added(attend_back_recomputed_, scores), "einsum": einsums}
    again = float(size.heads * size.d_head * n_pos * (n_pos + 1))
    moved += nbytes(query, key, lse_HP)
    yield Problem("attend_back_recomputed", products + mixing + again, moved, "products", ways, 1e-5)


def csr(ptr: Tensor, index: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(ptr, index, value, shape, check_invariants=False)


def nbytes(*tensors: Tensor) -> float:
    """Of all of them."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
