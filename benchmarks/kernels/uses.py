"""Where kernels are used, at the shapes that occur, on tensors without memory ("meta"): what `compiled.py` compiles and counts.

A use knows the operations (multiplications and additions) that its result takes, and the bytes that no implementation can avoid:
every input read and every result written once; of a decoder a row for each entry, as if no cache held it.

Letters: B tokens, D width, F features, C columns, n entries, k of a token; T rows in flight, P positions, H heads, K kv heads,
d d_head, O = H * d, V = K * d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.kernels.adam import triton as adam
from circuit_tracer.kernels.attend_back import projections
from circuit_tracer.kernels.attend_back import triton as attend_back
from circuit_tracer.kernels.contract import triton as contract
from circuit_tracer.kernels.decode import triton as decode
from circuit_tracer.kernels.digits import triton as digits
from circuit_tracer.kernels.encode import triton as encode
from circuit_tracer.kernels.launch import product

F32, BF16, I32, I64 = torch.float32, torch.bfloat16, torch.int32, torch.int64


@dataclass(frozen=True)
class Use:
    """One launch, or those of a custom operation."""

    kernel: str
    where: str
    shape: str
    launch: Callable[[], Any]
    flops: float
    kind: str  # of products, as `launch.product` says; "plain" without tensor cores
    bytes: float


@dataclass(frozen=True)
class Model:
    """A language model and its dictionary."""

    name: str
    width: int
    heads: int
    kv_heads: int
    d_head: int
    features: int
    positions: int
    rows: int
    active: int  # sources of a position that write to one layer
    columns: int  # of a decoder row


# The dictionaries of traces: a layer's own, and one that writes to all 30 layers.
TRACED = (
    Model("Gemma-2-2B", 2304, 8, 4, 256, 16_384, 64, 512, 100, 2304),
    Model("SmolLM2-135M", 576, 9, 3, 64, 2_048, 25, 512, 200, 30 * 576),
)


@dataclass(frozen=True)
class Training:
    """A dictionary in training."""

    name: str
    width: int
    columns: int
    features: int
    batch: int
    active: int


TRAINED = (
    Training("GPT-2, cross-layer", 768, 12 * 768, 32_768, 4_096, 16),
    Training("Gemma-2-2B, a layer", 2304, 2304, 16_384, 4_096, 64),
)


def uses() -> Iterator[Use]:
    """All of them."""
    for model in TRACED:
        yield from _attention(model)
        yield from _contraction(model)
        yield from _encoding(model.name, model.positions, model.width, model.features, (F32, F32), model.active)
        yield from _encoding(model.name, model.positions, model.width, model.features, (F32, BF16), model.active)
        yield _decoding(model.name, model.positions, model.columns, model.features, model.active, BF16)
    for each in TRAINED:
        yield from _encoding(each.name, each.batch, each.width, each.features, (BF16, BF16), each.active)
        yield _decoding(each.name, each.batch, each.columns, each.features, each.active, BF16)
        yield _gradients(each)
        yield from _updates(each)
    yield _digits()


def new(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def nbytes(*tensors: Tensor) -> float:
    """Of all of them."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _run(operation: Any, *arguments: Any) -> Callable[[], Any]:
    """The launch itself: torch would ask a custom operation for the shape of its result instead."""
    return lambda: operation._init_fn(*arguments)


def _attention(model: Model) -> Iterator[Use]:
    T, P, d = model.rows, model.positions, model.d_head
    pattern, z = new(model.heads, P, P), new(T, P, model.heads * d)
    mixed = new(T, P, model.kv_heads * d)
    shape = f"T {T}, P {P}, H {model.heads}, d {d}"
    below = P * (P + 1) / 2
    launch = _run(attend_back._mix_op, mixed, pattern, z, 0, P, 0, P, d)
    kind = product(F32, F32)
    yield Use("attend_back mix", model.name, shape, launch, 2 * T * model.heads * d * below, kind,
              nbytes(z, mixed) + 4 * model.heads * below)  # fmt: skip
    for dtype, made in ((F32, "digits"), (BF16, "split")):
        n, O, V = T * P, model.heads * d, model.kv_heads * d
        g, digits = new(n, model.width), new(3 if dtype is F32 else 1, model.width, O, dtype=BF16)
        launch = _run(projections._project_op, new(n, O), g, digits, False)
        shape = f"{n} x {model.width} x {O}, {str(dtype)[6:]} weights"
        yield Use("attend_back project", model.name, shape, launch, 2.0 * n * model.width * O, made,
                  nbytes(g, digits) + 4.0 * n * O)  # fmt: skip
        digits = new(len(digits), V, model.width, dtype=BF16)
        launch = _run(projections._project_op, g, new(n, V), digits, True)
        shape = f"{n} x {V} x {model.width}, added, {str(dtype)[6:]} weights"
        yield Use("attend_back project", model.name, shape, launch, 2.0 * n * model.width * V, made,
                  2 * nbytes(g) + nbytes(digits) + 4.0 * n * V)  # fmt: skip
    n = 2048  # a long prompt, whose pattern is made anew
    strip = new(model.heads, n, 1024)
    query, key, lse = new(model.heads, n, d), new(model.kv_heads, n, d), new(model.heads, n)
    launch = _run(attend_back._pattern_op, strip, query, key, lse, new(n, dtype=I64), new(n), 0, 0, d**-0.5, 50.0)
    yield Use("attend_back pattern", model.name, f"P {n}, strip 1024, d {d}", launch, 2.0 * strip.numel() * d, kind,
              nbytes(strip, query, key[:, :1024], lse))  # fmt: skip


def _contraction(model: Model) -> Iterator[Use]:
    T, P, n = model.rows, model.positions, model.positions * model.active
    g, ptr = new(T, P, model.width), new(P + 1, dtype=I64)
    out = new(T, n)
    shape = f"T {T}, P {P}, {model.active} sources a position, D {model.width}"
    flops = 2.0 * T * n * model.width
    moved = nbytes(g) + 2 * nbytes(out)
    rows = new(n, model.width)
    launch = _run(contract._contract_op, out, g, [rows], ptr, new(P, dtype=I64), None, None, None, model.active)
    yield Use("contract", model.name, shape, launch, flops, product(F32, F32), moved + nbytes(rows))
    table = new(model.features, model.width, dtype=BF16)
    which, where = new(n, dtype=I64), new(n, dtype=I64)
    launch = _run(contract._contract_op, out, g, [table], ptr, where, which, which, new(n), model.active)
    yield Use(
        "contract, addressed", model.name, shape, launch, flops, product(F32, BF16), moved + 2.0 * n * model.width
    )


def _encoding(
    name: str, n_rows: int, width: int, n_features: int, dtypes: tuple[torch.dtype, torch.dtype], active: int
) -> Iterator[Use]:
    x, weight = new(n_rows, width, dtype=dtypes[0]), new(n_features, width, dtype=dtypes[1])
    bias, cut = new(n_features), new(n_features)
    tiles = -(-n_features // encode.BLOCK_F)
    room = n_rows * active * 2
    counts = new(n_rows, tiles, dtype=I32)
    value, listed = new(room), new(room, dtype=I32)
    launch = _run(encode._list_op, value, listed, counts, counts, counts[0, :1], x, weight, bias, cut, None)
    shape = f"B {n_rows}, D {width}, F {n_features}, " + " by ".join(str(dtype)[6:] for dtype in dtypes)
    flops, kind = 2.0 * n_rows * n_features * width, product(*dtypes)
    moved = nbytes(x, weight, bias, cut) + 2 * nbytes(counts) + 8.0 * n_rows * active
    yield Use("encode", name, shape, launch, flops, kind, moved)
    if dtypes == (BF16, BF16):
        launch = _run(encode._floor_op, x, weight, bias, active)
        groups = 4.0 * n_rows * n_features / encode.GROUP
        yield Use("encode, largest", name, shape, launch, flops, kind, nbytes(x, weight, bias) + groups)
        launch = _run(
            encode._place_op, new(room, dtype=I64), value, value, listed, new(counts.numel() + 1, dtype=I64), counts,
            counts[0, :1],
        )  # fmt: skip
        yield Use("encode, place", name, f"{room} entries", launch, 0.0, "plain", 28.0 * n_rows * active)


def _decoding(name: str, n_rows: int, columns: int, n_features: int, active: int, dtype: torch.dtype) -> Use:
    n = n_rows * active
    out, weight = new(n_rows, columns), new(n_features, columns, dtype=dtype)
    launch = _run(decode._decode_op, out, new(n_rows + 1, dtype=I64), new(n, dtype=I64), new(n), weight)
    moved = float(n) * columns * dtype.itemsize + 2 * nbytes(out) + 12.0 * n
    return Use("decode", name, f"B {n_rows}, k {active}, C {columns}", launch, 2.0 * n * columns, "plain", moved)


def _gradients(each: Training) -> Use:
    n, F, C = each.batch * each.active, each.features, each.columns
    grad, weight, out = new(each.batch, C), new(F, C, dtype=BF16), new(F, C)
    items, slots = F + n // 64, 2 * n // 64
    launch = _run(
        decode._gradients_op, out, grad, weight, new(n), new(n, dtype=I64), new(n, dtype=I64), new(F + 1, dtype=I64),
        new(items, dtype=I64), new(F + 1, dtype=I64), new(slots, dtype=I64), new(F + 2, dtype=I64), 0, 64, True,
    )  # fmt: skip
    moved = 4.0 * n * C + nbytes(weight, out)
    return Use("decode gradients", each.name, f"B {each.batch}, k {each.active}, C {C}, F {F}", launch, 4.0 * n * C,
               "plain", moved)  # fmt: skip


def _updates(each: Training) -> Iterator[Use]:
    R, C = each.features, each.columns
    grad, weight, norm = new(R, C), new(R, C, dtype=BF16), new(R)
    none, no_exponent = new(0), new(0, dtype=torch.uint8)
    for moments in (F32, BF16, torch.uint8):
        first, second = new(R, C, dtype=moments), new(R, C, dtype=moments)
        exponent = new(R, -(-C // adam.BLOCK_C), dtype=torch.uint8) if moments is torch.uint8 else no_exponent
        launch = _run(
            adam._adam_op, weight, first, second, exponent, exponent, norm if norm is not None else none, grad, 1e-3,
            1.0, 0.9, 0.999, 1e-8, 0, 1, 2, 3,
        )  # fmt: skip
        moved = nbytes(grad, norm) + 2 * nbytes(weight, first, second, exponent, exponent)
        name = f"{R} x {C}, {str(moments)[6:]} moments"
        yield Use("adam", each.name, name, launch, 15.0 * R * C, "plain", moved)


def _digits() -> Use:
    n = 12 * 4096 * 20
    key, counts = new(n, dtype=I32), new(2**11, dtype=I64)
    launch = _run(digits._digits_op, counts, key, new(1, dtype=I64), 11, 11)
    return Use("digits", "BatchTopK of GPT-2", f"{n} keys, 11 bits", launch, 0.0, "plain", nbytes(key))
