"""Encoding by a coarse product, by the float32 product, in parts and in any order: the same entries."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from circuit_tracer.kernels.encode import above_cuts, encode, encode_top_k, k_largest, product
from circuit_tracer.kernels.encode.exact import Cuts, Rows
from circuit_tracer.kernels.encode.kept import Kept, Weights
from circuit_tracer.kernels.encode.ranked import largest

Entries = tuple[Tensor, Tensor, Tensor]
B, D, F, K = 70, 96, 300, 5


@pytest.fixture(autouse=True)
def _coarse_products_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.kernels.encode.kept.has_bfloat16_products", lambda: True)
    monkeypatch.setattr("circuit_tracer.kernels.encode.kept.LEAST_WEIGHTS", 0)
    monkeypatch.setattr("circuit_tracer.kernels.encode.kept.AT_ONCE", B)


def draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, weights, biases; tokens and features of very different norms."""
    generator = torch.Generator().manual_seed(seed)
    x_BD, weight_FD, bias_F = (torch.randn(*shape, generator=generator) for shape in ((B, D), (F, D), (F,)))
    x_BD *= 2.0 ** torch.randint(-3, 5, (B, 1), generator=generator)
    weight_FD *= 2.0 ** torch.randint(-4, 3, (F, 1), generator=generator)
    return x_BD, weight_FD.to(dtype), bias_F


def exact(x_D: Tensor, w_D: Tensor, bias: Tensor) -> float:
    """x · w + b, rounded once: products of float32 are exact in float64, and fsum adds without rounding."""
    total = math.fsum([a * b for a, b in zip(x_D.tolist(), w_D.tolist(), strict=True)] + [bias.item()])
    return float(torch.tensor(total, dtype=torch.float64).float())


def near(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
    """Cuts at, one step below, or one step above what one token gives, as float32 has it."""
    pre_BF = (x_BD.double() @ weight_FD.double().T + bias_F.double()).float()
    cut_F = pre_BF.sort(dim=0).values[-3]
    step = torch.arange(F) % 3
    cut_F[step == 1] = torch.nextafter(cut_F, cut_F.new_tensor(math.inf))[step == 1]
    cut_F[step == 2] = torch.nextafter(cut_F, cut_F.new_tensor(-math.inf))[step == 2]
    return cut_F


def weights(weight_FD: Tensor, coarse: bool) -> Weights:
    made = Weights(weight_FD)
    if coarse:
        made.make_coarse()
        assert made.coarse is not None
    return made


def found(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, cut_F: Tensor, coarse: bool) -> Entries:
    given = weights(weight_FD, coarse)
    return above_cuts(given.rows(x_BD, bias_F), given, cut_F)


def ranked(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, coarse: bool, k: int = K) -> Entries:
    given = weights(weight_FD, coarse)
    made = k_largest(given.rows(x_BD, bias_F), given, k)
    assert made is not None
    return made


def assert_equal(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


def assert_same(left: Entries, right: Entries) -> None:
    """The same entries; values to rounding."""
    assert_equal(left[:2], right[:2])
    assert torch.allclose(left[2], right[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_at_its_cut_an_entry_is_decided_by_the_exact_sum(seed: int, dtype: torch.dtype) -> None:
    x_BD, weight_FD, bias_F = draw(seed, dtype)
    cut_F = near(x_BD, weight_FD, bias_F)
    row, feature, value = found(x_BD, weight_FD, bias_F, cut_F, coarse=True)
    pre_BF = x_BD.double() @ weight_FD.double().T + bias_F.double()
    expected_BF = pre_BF > cut_F
    close = ((pre_BF - cut_F).abs() < 1e-4 * (1 + pre_BF.abs())).nonzero().tolist()
    assert len(close) >= F
    for b, f in close:
        expected_BF[b, f] = exact(x_BD[b], weight_FD[f], bias_F[f]) > cut_F[f]
    assert torch.equal(torch.stack([row, feature], 1), expected_BF.nonzero())
    assert torch.allclose(value.double(), pre_BF[row, feature], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_coarse_and_float32_products_find_the_same(seed: int, dtype: torch.dtype) -> None:
    x_BD, weight_FD, bias_F = draw(seed, dtype)
    cut_F = near(x_BD, weight_FD, bias_F)
    assert_same(found(x_BD, weight_FD, bias_F, cut_F, True), found(x_BD, weight_FD, bias_F, cut_F, False))
    assert_same(ranked(x_BD, weight_FD, bias_F, True), ranked(x_BD, weight_FD, bias_F, False))


@pytest.mark.parametrize("coarse", [True, False], ids=["coarse", "float32"])
def test_an_entry_depends_on_its_token_and_feature_alone(coarse: bool) -> None:
    """Permuted tokens, and tokens one by one, in other memory, with other threads."""
    x_BD, weight_FD, bias_F = draw(7)
    x_BD /= x_BD.norm(dim=1, keepdim=True)  # no token alone has more candidates than the scan takes
    cut_F = near(x_BD, weight_FD, bias_F)
    threads, equal = torch.get_num_threads(), assert_equal if coarse else assert_same
    for find in (lambda x: found(x, weight_FD, bias_F, cut_F, coarse), lambda x: ranked(x, weight_FD, bias_F, coarse)):
        whole = find(x_BD)
        order_B = torch.randperm(B, generator=torch.Generator().manual_seed(0))
        torch.set_num_threads(2)
        row, feature, value = find(x_BD[order_B])
        torch.set_num_threads(threads)
        back = torch.argsort(order_B[row], stable=True)
        equal((order_B[row][back], feature[back], value[back]), whole)
        parts = [find(x_BD[at : at + size]) for at, size in ((0, 1), (1, 2), (3, 67))]
        parts = [(row + at, *rest) for (row, *rest), at in zip(parts, (0, 1, 3), strict=True)]
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
        assert_same((row, feature, value), whole)  # one token alone may have too many candidates for a scan


def test_blocks_of_tokens_and_workers_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BD, weight_FD, bias_F = draw(8)
    cut_F, threads = near(x_BD, weight_FD, bias_F), torch.get_num_threads()
    whole, best = found(x_BD, weight_FD, bias_F, cut_F, True), ranked(x_BD, weight_FD, bias_F, True)
    for name, value in {"TOKEN_BYTES": 0, "TOKENS": 16, "BLOCK": 16 * F}.items():
        for module in ("scan", "ranked"):
            monkeypatch.setattr(sys.modules[f"circuit_tracer.kernels.encode.{module}"], name, value, raising=False)
    try:
        for n_workers in (1, 2, 3):
            torch.set_num_threads(n_workers)
            assert_equal(found(x_BD, weight_FD, bias_F, cut_F, True), whole)
            assert_equal(ranked(x_BD, weight_FD, bias_F, True), best)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("active", [(), (1, 4), range(5)], ids=["few", "some", "all"])
def test_groups_of_tokens_with_many_candidates_take_the_product(
    monkeypatch: pytest.MonkeyPatch, active: Sequence[int]
) -> None:
    """Group by group, whichever workers take them: bit-equal for any number. The last group has 6 tokens."""
    x_BD, weight_FD, bias_F = draw(9)
    x_BD /= x_BD.norm(dim=1, keepdim=True)
    cut_F = (x_BD @ weight_FD.T + bias_F).sort(dim=0).values[-2] + 0.1
    for group in active:
        x_BD[16 * group : 16 * group + 16] *= 30
    module = sys.modules["circuit_tracer.kernels.encode.scan"]
    for name, value in {"TOKEN_BYTES": 2 * 16 * 4 * D, "TOKENS": 16, "BLOCK": 16 * F}.items():
        monkeypatch.setattr(module, name, value)
    taken: list[int] = []

    def above(rows: Rows, cuts: Cuts) -> Entries:
        taken.append(len(rows.x_BD))
        return product.above(rows, cuts)

    monkeypatch.setattr(module, "above", above)
    threads, made = torch.get_num_threads(), []
    try:
        for n_workers in (1, 2, 3):
            torch.set_num_threads(n_workers)
            made.append(found(x_BD, weight_FD, bias_F, cut_F, True))
    finally:
        torch.set_num_threads(threads)
    assert sorted(taken) == sorted(3 * [min(16, B - 16 * group) for group in active])
    assert_equal(made[0], made[1])
    assert_equal(made[0], made[2])
    assert_same(made[0], found(x_BD, weight_FD, bias_F, cut_F, coarse=False))


@pytest.mark.parametrize("width", [3, 97, 5000, 9000])
def test_a_pre_activation_is_the_same_wherever_it_stands(width: int) -> None:
    """In any order, alone, in other memory, with other threads; of wide inputs too, whose sums a library may share."""
    generator = torch.Generator().manual_seed(width)
    x_BD, weight_FD = torch.randn(7, width, generator=generator), torch.randn(11, width + 1, generator=generator)[:, 1:]
    given = Weights(weight_FD)
    rows = given.rows(x_BD, torch.randn(11, generator=generator))
    row, feature = torch.randint(7, (40,), generator=generator), torch.randint(11, (40,), generator=generator)
    whole, threads = rows.pre_activations(row, feature), torch.get_num_threads()
    exact_n = (x_BD.double() @ weight_FD.double().T + rows.bias_F.double())[row, feature]
    assert torch.allclose(whole.double(), exact_n, rtol=1e-5, atol=1e-4)
    moved = Weights(weight_FD.clone()).rows(torch.cat([torch.zeros(1), x_BD.flatten()])[1:].view(7, width), rows.bias_F)
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            assert torch.equal(moved.pre_activations(row.flip(0), feature.flip(0)).flip(0), whole)
            alone = [moved.pre_activations(row[n : n + 1], feature[n : n + 1]) for n in range(40)]
            assert torch.equal(torch.cat(alone), whole)
    finally:
        torch.set_num_threads(threads)
    assert rows.pre_activations(row[:0], feature[:0]).shape == (0,)


@pytest.mark.parametrize("coarse", [True, False], ids=["coarse", "float32"])
def test_equal_ones_at_the_last_place_are_those_of_the_lowest_features(coarse: bool) -> None:
    x_BD, weight_FD, bias_F = draw(3)
    weight_FD[150:] = weight_FD[:150]  # each pre-activation twice
    bias_F[150:] = bias_F[:150]
    for k in (1, 4, 5):
        row, feature, value = ranked(x_BD, weight_FD, bias_F, coarse, k)
        pre_BF = (x_BD.double() @ weight_FD.double().T + bias_F.double()).float()
        expected = torch.stack(
            [torch.tensor(sorted(sorted(range(F), key=lambda f: (-p[f], f))[:k])) for p in pre_BF.tolist()]
        )
        assert torch.equal(feature.view(B, k), expected)
        assert torch.equal(row, torch.arange(B).repeat_interleave(k))
        assert torch.allclose(value, pre_BF[row, feature], rtol=1e-5, atol=1e-4)


def test_the_last_place_is_decided_by_exact_sums() -> None:
    """Pairs of features that differ in the last bit of one weight: float32 sums see them in any order."""
    x_BD, weight_FD, bias_F = draw(5)
    weight_FD[1::2] = weight_FD[::2]
    bias_F[1::2] = bias_F[::2]
    weight_FD[1::2, 0] = torch.nextafter(weight_FD[1::2, 0], torch.tensor(math.inf))
    row, feature, _ = ranked(x_BD, weight_FD, bias_F, coarse=True)
    for b in range(0, B, 7):
        pre_F = [exact(x_BD[b], weight_FD[f], bias_F[f]) for f in range(F)]
        assert feature[row == b].tolist() == sorted(sorted(range(F), key=lambda f: (-pre_F[f], f))[:K])


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-6, 1e15, 1e25])
def test_numbers_of_any_size(scale: float) -> None:
    """Subnormal ones, which coarse products flush to zero, and such as have no bound in float32."""
    x_BD, weight_FD, bias_F = draw(1)
    x_BD, bias_F = x_BD * scale, bias_F * scale
    x_BD[4] = 0
    cut_F = (x_BD.double() @ weight_FD.double().T).topk(4, dim=0).values[-1].float() + bias_F
    row, feature, _ = found(x_BD, weight_FD, bias_F, cut_F, coarse=True)
    other, other_feature, _ = found(x_BD, weight_FD, bias_F, cut_F, coarse=False)
    assert torch.equal(row * F + feature, other * F + other_feature)
    pre_BF = x_BD.double() @ weight_FD.double().T + bias_F.double()
    sure_BF = pre_BF > cut_F + 1e-4 * pre_BF.abs() + 1e-44
    found_BF = torch.zeros(B, F, dtype=torch.bool)
    found_BF[row, feature] = True
    assert (found_BF | ~sure_BF).all()
    assert 2 * F < len(row) < 5 * F


def test_few_features_and_many_kept() -> None:
    x_BD, weight_FD, bias_F = draw(2)
    given = weights(weight_FD, coarse=True)
    assert largest(given.rows(x_BD, bias_F), given.coarse, F // 2) is None  # the product is what it takes
    whole = encode_top_k(x_BD, weight_FD, bias_F, 2 * F)
    positive = (x_BD @ weight_FD.T + bias_F) > 0
    assert torch.equal(torch.stack([whole.row, whole.feature], 1), positive.nonzero())
    one = encode(x_BD, weight_FD[:1], bias_F[:1], bias_F[:1], Kept())
    assert one.n_features == 1
    assert len(encode(x_BD[:0], weight_FD, bias_F, bias_F, Kept()).value) == 0


def test_what_is_kept_follows_the_weights() -> None:
    x_BD, weight_FD, bias_F = draw(6)
    cut_F, kept = near(x_BD, weight_FD, bias_F), Kept()

    def entries() -> Entries:
        made = encode(x_BD, weight_FD, bias_F, cut_F, kept)
        return made.row, made.feature, made.value

    before = entries()
    assert kept.n_bytes > F * D * 2
    assert kept.of(weight_FD, B) is kept.of(weight_FD, B)
    assert kept.of(weight_FD, B - 1).coarse is None  # whatever is kept, few tokens take the product
    for change in (weight_FD, bias_F, cut_F):
        change[3:9] *= 0.5
        assert_same(entries(), found(x_BD, weight_FD, bias_F, cut_F, coarse=False))
    assert not all(torch.equal(one, other) for one, other in zip(before, entries(), strict=True))
    kept.drop()
    assert kept.n_bytes == 0
    assert Kept(may_copy=False).of(weight_FD, 1000).coarse is not None
