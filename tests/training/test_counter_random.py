"""Random numbers by key: the published generator, uniform, independent of order, the same for every way of asking."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.random_bits import key_of, round_stochastically
from circuit_tracer.training.step.counter_random import bits, uniform

# The first outputs of splitmix64 for seed 0, as its authors' C program gives them.
SPLITMIX = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
# Computed with Python's integers. A change of these changes every run in bfloat16 and every subsampled band.
KEYED = {
    (7,): (4086104717852921413, 2761557581558106366, 5384465358431429423),
    (7, 3): (5813072873838994896, 2027840764165633342, 5145083803867479667),
    (3, 7): (7134206676244254677, 2009645909681521804, 176026877415015471),
    (2**63 - 1, 0, 12): (4334469205535277682, 2104738885312953940, 911454765401362050),
}

keys = st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple)


def test_numbers_are_those_of_splitmix64() -> None:
    assert bits(torch.arange(4)).tolist() == [word & (2**63 - 1) for word in SPLITMIX]


@pytest.mark.parametrize("key", KEYED, ids=str)
def test_numbers_stay_what_they_were(key: tuple[int, ...]) -> None:
    assert tuple(bits(torch.tensor([0, 1, 10**12]), *key).tolist()) == KEYED[key]


@given(st.permutations(range(20)), keys)
def test_a_number_does_not_depend_on_what_else_is_drawn(order: list[int], key: tuple[int, ...]) -> None:
    counter = torch.tensor(order)
    assert torch.equal(bits(counter, *key), bits(torch.arange(20), *key)[counter])
    assert torch.equal(bits(counter.view(4, 5), *key), bits(counter, *key).view(4, 5))


def test_counters_are_left_as_they_are() -> None:
    counter = torch.arange(5)
    bits(counter, 1)
    assert counter.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", [(), (0,), (1, 2, 3), (2**40, 5)], ids=str)
def test_numbers_are_uniform_and_in_range(key: tuple[int, ...]) -> None:
    drawn = uniform(torch.arange(100_000), *key)
    assert drawn.dtype is torch.float32
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn.double(), 64, 0, 1)
    chi_square = float(((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum())
    assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("lag", [1, 31, 1024])
def test_neighbours_and_neighbouring_keys_are_uncorrelated(lag: int) -> None:
    def correlation(left: Tensor, right: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([left, right]).double())[0, 1])

    n = 50_000
    drawn, later = uniform(torch.arange(n + lag), 5), uniform(torch.arange(n), 5 + lag)
    assert abs(correlation(drawn[:n], drawn[lag:])) < 5 / math.sqrt(n)
    assert abs(correlation(drawn[:n], later)) < 5 / math.sqrt(n)
    # a step's numbers are not those of another step moved along
    assert not set(bits(torch.arange(1000), 5).tolist()) & set(bits(torch.arange(1000), 5 + lag).tolist())


values = st.floats(width=32, allow_subnormal=True)


@given(st.lists(values, min_size=1, max_size=40), st.integers(0, 10_000), keys)
def test_rounding_gives_a_neighbour(numbers: list[float], first: int, key: tuple[int, ...]) -> None:
    exact = torch.tensor(numbers, dtype=torch.float32)
    raw = exact.view(torch.int32)
    down = (raw & -0x10000).view(torch.float32)
    up = ((raw + 0xFFFF) & -0x10000).view(torch.float32)
    found = round_stochastically(exact, first, key_of(*key)).float()
    finite = exact.isfinite()
    assert torch.where(finite, (found == down) | (found == up), True).all()
    assert torch.equal(found[~finite].isnan(), exact[~finite].isnan())
    assert torch.equal(found[exact.isinf()], exact[exact.isinf()])


@given(st.lists(values, min_size=1, max_size=40), st.integers(0, 2**40), st.data())
def test_rounding_in_blocks_is_rounding_at_once(numbers: list[float], first: int, data: st.DataObject) -> None:
    exact = torch.tensor(numbers, dtype=torch.float32).nan_to_num(0.0)
    cut = data.draw(st.integers(0, len(numbers)))
    whole = round_stochastically(exact, first, key_of(3, 4))
    parts = [
        round_stochastically(part, place, key_of(3, 4))
        for part, place in ((exact[:cut], first), (exact[cut:], first + cut))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("value", [1 + 2**-10, -3.14159, 1e-3, 6.1e4, -1e-30, 0.0])
def test_rounding_keeps_the_mean(value: float) -> None:
    n = 40_000
    exact = torch.full((n,), value)
    found = round_stochastically(exact, 0, key_of(1, 2)).double()
    step = float(found.max() - found.min())
    assert abs(float(found.mean()) - float(exact[0].double())) <= 5 * 0.5 * step / math.sqrt(n)


def test_what_bfloat16_holds_stays() -> None:
    exact = torch.tensor([0.0, -0.0, 1.5, -(2.0**100), torch.finfo(torch.bfloat16).max])
    for key in range(20):
        assert torch.equal(round_stochastically(exact, 0, key_of(key)).float(), exact)
