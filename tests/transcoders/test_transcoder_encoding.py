"""Encoding in blocks equals the dense formula, whatever the shapes, the activation and the size of the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.transcoders import ActiveFeatures, JumpReLU, TopK
from circuit_tracer.transcoders.encoding import encode_in_blocks, features_per_block
from circuit_tracer.transcoders.weight_rows import MemoryRows
from tests.support.dictionaries import (
    ACTIVATIONS,
    KINDS,
    make_activation,
    naive_activation,
    random_clt,
    random_transcoders,
    uniform,
)


def dense_of(selected, shape):
    position, index, value = selected
    dense = torch.zeros(shape, dtype=value.dtype)
    dense[position, index] = value
    return dense


@settings(max_examples=150, deadline=None)
@given(
    activation=st.sampled_from(ACTIVATIONS),
    n_positions=st.integers(0, 6),
    n_features=st.integers(1, 40),
    d_model=st.integers(1, 6),
    k=st.integers(1, 45),
    block_bytes=st.integers(1, 4000),
    coarse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_blocks_equal_the_dense_formula(activation, n_positions, n_features, d_model, k, block_bytes, coarse, seed):
    torch.manual_seed(seed)
    # Small whole numbers make many equal pre-activations: ties must not depend on the blocks.
    draw = (lambda *s: torch.randint(-2, 3, s).double()) if coarse else (lambda *s: uniform(*s, dtype=torch.float64))
    x, weight, bias = draw(n_positions, d_model), draw(n_features, d_model), draw(n_features)
    function = make_activation(activation, n_features, k, torch.float64)
    selected = encode_in_blocks(x, MemoryRows(weight), bias, function, layer=0, block_bytes=block_bytes)
    position, index, value = selected
    expected = naive_activation(x @ weight.T + bias, function)
    torch.testing.assert_close(dense_of(selected, expected.shape), expected)
    torch.testing.assert_close(function(x @ weight.T + bias), expected)
    assert (value != 0).all()
    order = position * n_features + index
    assert (order.diff() > 0).all()
    if isinstance(function, TopK):
        assert len(value) <= n_positions * min(k, n_features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_methods_agree_with_each_other(kind, activation):
    transcoders = random_transcoders(kind, activation)
    x = uniform(3, 4, 5)
    dense = transcoders.encode(x)
    sparse, rows = transcoders.encode_sparse(x, zero_positions=slice(0, 1))
    expected = dense.clone()
    expected[:, 0] = 0
    torch.testing.assert_close(sparse.to_dense(), expected)
    layer, _, index = sparse.coalesce().indices()
    wanted = [transcoders.encoder_rows(int(a), b[None])[0] for a, b in zip(layer, index, strict=True)]
    torch.testing.assert_close(rows, torch.cat(wanted))
    for depth in range(3):
        torch.testing.assert_close(dense_of(transcoders.encode_positions(depth, x[depth]), (4, 13)), dense[depth])
        pre = transcoders.encode_layer(x[depth], depth, apply_activation_function=False)
        torch.testing.assert_close(transcoders.apply_activation_function(depth, pre), dense[depth])


def test_active_features_are_sorted_and_found_by_layer():
    clt = random_clt()
    active = clt.encode_active(uniform(3, 4, 5), zero_positions=None)
    key = (active.layer * 4 + active.position) * 13 + active.index
    assert (key.diff() > 0).all()
    for layer in range(3):
        rows = active.of_layer(layer)
        assert (active.layer[rows] == layer).all()
        assert rows.stop - rows.start == int((active.layer == layer).sum())


def test_active_features_reject_wrong_columns():
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="position must be int64"):
        ActiveFeatures(index, index.int(), index, torch.zeros(2))


def test_nothing_active_is_an_empty_table():
    clt = random_clt("jump_relu")
    clt.activation_function.threshold = torch.full((3, 1, 13), 1e9)
    x = uniform(3, 4, 5)
    assert len(clt.encode_active(x)) == 0
    sparse, rows = clt.encode_sparse(x)
    assert sparse.shape == (3, 4, 13)
    assert rows.shape == (0, 5)
    torch.testing.assert_close(clt.decode(sparse), clt.b_dec[:, None].expand(3, 4, 5))


def test_jump_relu_is_strict_and_takes_a_scalar():
    pre = torch.tensor([[0.5, 0.5000001, -1.0]])
    assert JumpReLU(0.5)(pre).tolist() == [[0.0, pre[0, 1].item(), 0.0]]
    assert (JumpReLU(torch.tensor([0.4, 9.0, -2.0]))(pre) != 0).tolist() == [[True, False, True]]


def test_topk_keeps_negative_values_unless_told():
    pre = torch.tensor([[-3.0, -1.0, -2.0, -1.0]])
    assert TopK(2)(pre).tolist() == [[0.0, -1.0, 0.0, -1.0]]
    assert TopK(1)(pre).tolist() == [[0.0, -1.0, 0.0, 0.0]]
    assert TopK(2, nonnegative=True)(pre).count_nonzero() == 0
    with pytest.raises(InputError, match="positive integer, found 0"):
        TopK(0)


def test_compute_dtype_is_float32_or_the_input_float64():
    clt = random_clt(dtype=torch.bfloat16)
    assert clt.encode_positions(0, uniform(4, 5, dtype=torch.bfloat16))[2].dtype == torch.float32
    assert clt.encode_positions(0, uniform(4, 5, dtype=torch.float64))[2].dtype == torch.float64


def test_nan_and_infinity_are_errors_that_name_the_place():
    clt = random_clt()
    x = uniform(4, 5)
    x[2, 1] = float("nan")
    with pytest.raises(NumericalError, match="layer 1: the transcoder's input at position 2"):
        clt.encode_positions(1, x)
    clt.W_enc[1, 7] = float("inf")
    with pytest.raises(NumericalError, match="layer 1: the pre-activation of feature 7"):
        clt.encode_positions(1, uniform(4, 5))


def test_wrong_shapes_are_errors_that_say_what_is_expected():
    clt = random_clt()
    with pytest.raises(InputError, match=r"reads \(positions, 5\) inputs, found shape \(4, 6\)"):
        clt.encode_positions(0, uniform(4, 6))
    with pytest.raises(InputError, match=r"\(3, P, 5\), found \(2, 4, 5\)"):
        clt.encode_active(uniform(2, 4, 5))
    with pytest.raises(InputError, match="layer 3 does not exist"):
        clt.encode_positions(3, uniform(4, 5))


def test_blocks_are_bounded():
    assert features_per_block(20, 2304, torch.float32, 64 * 2**20) * 2304 * 4 <= 64 * 2**20
    assert features_per_block(10**9, 2304, torch.float32, 64 * 2**20) == 1
