"""Adam on rows: moments in eight bits, and random bits that do not depend on who rounds, or in what blocks."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from circuit_tracer.kernels import adam as torch_way
from circuit_tracer.kernels.adam import Rows, Update, packed
from circuit_tracer.kernels.adam.cases import BF16, F32, PACKED, draw
from circuit_tracer.kernels.random_bits import key_of

WAYS = [torch_way]
if find_spec("triton") is not None and not torch.cuda.is_available():
    from circuit_tracer.kernels.adam import triton

    WAYS.append(triton)

UPDATE = Update(3, 1e-3, 0.9, 0.999, 1e-8, keys=(key_of(1), key_of(2), key_of(3)))
each_moment = pytest.mark.parametrize("largest", [packed.FIRST, packed.SECOND], ids=["first", "second"])


def updated(way: object, rows: Rows, grad: Tensor, update: Update) -> Rows:
    made = Rows(*(None if (part := getattr(rows, each.name)) is None else part.clone() for each in fields(rows)))
    way.adam_(made, grad, update)
    return made


def assert_same(left: Rows, right: Rows) -> None:
    """Up to the last bit of what is computed, which may differ where a processor's vectors end, and the few decisions that hang
    on it; under other random bits every second number would differ."""
    for each in fields(left):
        parts = getattr(left, each.name), getattr(right, each.name)
        assert (parts[0] is None) == (parts[1] is None)
        if parts[0] is not None and parts[0].dtype is F32:
            torch.testing.assert_close(*parts, rtol=1e-4 if each.name == "norm" else 1e-6, atol=1e-8)
        elif parts[0] is not None:
            assert (parts[0] == parts[1]).float().mean() > 0.99, each.name


def some(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(*(None if (part := getattr(rows, each.name)) is None else part[start:stop] for each in fields(rows)))


def numbers(largest: int, count: int = 4096) -> Tensor:
    """Of many sizes; second moments are positive."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, count, generator=generator).mul(3).exp2() * 1e-4
    sign = torch.randint(2, values.shape, generator=generator) * 2 - 1
    return values * sign if largest == packed.FIRST else values


@pytest.mark.few
@pytest.mark.parametrize("dtypes", [(BF16, F32), (BF16, BF16), (BF16, PACKED), (F32, PACKED)], ids=str)
@pytest.mark.parametrize("width", [260, 63], ids=lambda width: f"C{width}")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.rpartition(".")[2])
def test_rows_in_blocks_are_rows_at_once(way: object, dtypes: tuple[torch.dtype, torch.dtype], width: int) -> None:
    rows, grad = draw(dtypes, 5, width)
    whole = updated(way, rows, grad, UPDATE)
    for start, stop in ((0, 2), (2, 5)):
        found = updated(way, some(rows, start, stop), grad[start:stop], replace(UPDATE, place=start * width))
        assert_same(found, some(whole, start, stop))


@pytest.mark.few
@pytest.mark.skipif(len(WAYS) == 1, reason="the interpreter is not used here")
@pytest.mark.parametrize("dtypes", [(BF16, F32), (BF16, BF16), (BF16, PACKED), (F32, PACKED)], ids=str)
@pytest.mark.parametrize("shape", [(3, 520), (2, 37)], ids=lambda shape: "R{}-C{}".format(*shape))
def test_kernel_and_torch_round_with_the_same_bits(
    dtypes: tuple[torch.dtype, torch.dtype], shape: tuple[int, int]
) -> None:
    rows, grad = draw(dtypes, *shape)
    update = replace(UPDATE, place=17 * shape[1])
    assert_same(*(updated(way, rows, grad, update) for way in WAYS))


@each_moment
def test_what_is_packed_is_a_neighbour_of_the_number(largest: int) -> None:
    values = numbers(largest)
    found = packed.unpack(*packed.pack(values, largest, 0, key_of(7)), largest)
    blocks = values.abs().view(4, -1, packed.BLOCK)
    least = (blocks.amax(2, keepdim=True) * 2.0 ** (1 - largest)).expand_as(blocks).reshape(values.shape)
    assert ((found - values).abs() <= torch.maximum(values.abs(), 2 * least) / 8).all()
    if largest == packed.SECOND:
        assert (found > 0).all()


@each_moment
def test_packing_keeps_the_mean(largest: int) -> None:
    values, draws = numbers(largest, 512), 400
    mean = (
        sum(packed.unpack(*packed.pack(values, largest, 0, key_of(n)), largest).double() for n in range(draws)) / draws
    )
    normal = values.abs() > values.abs().amax() * 2.0**-12
    error = ((mean - values) / values)[normal]
    assert float(error.abs().max()) < 5 / 16 / draws**0.5
    assert abs(float(error.mean())) < 5 / 16 / (draws * len(error)) ** 0.5


@each_moment
def test_packed_numbers_stay_what_they_are(largest: int) -> None:
    values = packed.unpack(*packed.pack(numbers(largest), largest, 0, key_of(7)), largest)
    for key in range(5):
        assert torch.equal(packed.unpack(*packed.pack(values, largest, 0, key_of(key)), largest), values)


@each_moment
def test_zero_and_extremes_are_packed(largest: int) -> None:
    values = torch.tensor([[0.0, 0.0, 0.0], [1e-38, 0.0, 1e-20], [3e30, 1.0, 0.0], [1.9999999, 1.0, 0.0]])
    found = packed.unpack(*packed.pack(values, largest, 0, key_of(7)), largest)
    assert torch.equal(found == 0, values == 0) or largest == packed.FIRST
    assert found.isfinite().all()
    assert torch.equal(found[0], values[0])
    assert float(found[3, 0]) in (1.875, 2.0)


@pytest.mark.parametrize("moments", [BF16, PACKED], ids=str)
def test_narrow_moments_lead_where_wide_ones_do(moments: torch.dtype) -> None:
    """Noisy gradients of a quadratic: the distance left is that of float32 moments, within a tenth."""
    distance = {}
    for kept in (F32, moments):
        generator = torch.Generator().manual_seed(1)
        rows, _ = draw((F32, F32), 8, 256, norm=False)
        first, second = torch.zeros_like(rows.first), torch.zeros_like(rows.second)
        exponents: list[Tensor | None] = [None, None]
        if kept is PACKED:
            first, exponents[0] = packed.pack(first, packed.FIRST, 0, 0)
            second, exponents[1] = packed.pack(second, packed.SECOND, 0, 0)
        rows = Rows(rows.weight, first.to(kept), second.to(kept), *exponents)
        curvature = torch.logspace(-2, 1, 256)
        for step in range(300):
            grad = curvature * (rows.weight + 0.5 * torch.randn(8, 256, generator=generator))
            rate = 0.02 * (1 - step / 300)
            keys = tuple(key_of(step, which) for which in range(3))
            torch_way.adam_(rows, grad, Update(step, rate, 0.9, 0.99, 1e-8, keys=keys))
        distance[kept] = float(rows.weight.square().mean().sqrt())
    assert distance[moments] == pytest.approx(distance[F32], rel=0.1)
    assert distance[F32] < 0.3
