"""Decoding, reconstruction, skip, assignment and devices of the kinds, against the plain sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders import (
    CrossLayerTranscoder,
    ReLU,
    SingleLayerTranscoder,
    TopK,
    TranscoderSet,
    save_transcoders,
)
from tests.support.dictionaries import (
    ACTIVATIONS,
    KINDS,
    naive_reconstruction,
    random_clt,
    random_set,
    random_transcoders,
    uniform,
)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_equals_the_plain_sum(kind, activation, skip):
    transcoders = random_transcoders(kind, activation, skip)
    x = uniform(3, 4, 5)
    acts = transcoders.encode(x)
    acts[:, -1] = 0  # trailing positions without features still get the biases
    expected = naive_reconstruction(transcoders, acts, x)
    torch.testing.assert_close(transcoders.decode(acts, x), expected)
    torch.testing.assert_close(transcoders.decode(acts.to_sparse(), x), expected)
    position, layer, feature, rows, source = transcoders.select_decoder_vectors(acts)
    assert position.shape == layer.shape == feature.shape == source.shape == rows.shape[:1]
    torch.testing.assert_close(transcoders.compute_reconstruction(position, layer, rows, x), expected)
    value = acts.to_sparse().coalesce().values()
    for row, at, which, owner in zip(rows, layer, feature, source, strict=True):
        read_at = int(acts.to_sparse().coalesce().indices()[0, owner])
        torch.testing.assert_close(row, value[owner] * transcoders.decoder_rows(read_at, which[None], int(at))[0])


def test_skip_orientation_is_the_formats():
    x = uniform(3, 4, 5)
    clt, per_layer = random_clt(skip=True), random_set(skip=True)
    torch.testing.assert_close(clt.compute_skip(1, x[1]), x[1] @ clt.W_skip[1])
    torch.testing.assert_close(per_layer.compute_skip(1, x[1]), x[1] @ per_layer[1].W_skip.T)
    torch.testing.assert_close(per_layer[1].compute_skip(x[1]), x[1] @ per_layer.skip_matrix(1))
    assert random_clt().skip_matrix(0) is None
    with pytest.raises(InputError, match="no skip connection"):
        random_clt().compute_skip(0, x[0])
    with pytest.raises(InputError, match="decode needs input_acts"):
        clt.decode(clt.encode(x))


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), index=st.lists(st.integers(0, 12), max_size=20), layer=st.integers(0, 2))
def test_rows_equal_the_dense_matrices(kind, index, layer):
    transcoders = random_transcoders(kind)
    index = torch.tensor(index, dtype=torch.int64)
    decoder = transcoders.decoder(layer).whole()
    assert torch.equal(transcoders.decoder_rows(layer, index), decoder[index])
    weight, bias = transcoders.encoder_rows(layer, index)
    assert torch.equal(weight, transcoders.encoder(layer).whole()[index])
    assert torch.equal(bias, transcoders.encoder_bias(layer)[index])
    for slot, target in enumerate(transcoders.target_layers(layer)):
        assert torch.equal(transcoders.decoder_rows(layer, index, target), decoder[index, slot])


def test_rows_out_of_range_are_errors():
    clt = random_clt()
    with pytest.raises(InputError, match="features 0 to 12; asked for 2 to 13"):
        clt.decoder_rows(0, torch.tensor([13, 2]))
    with pytest.raises(InputError, match="write to layers 1 to 2, not 0"):
        clt.decoder_rows(1, torch.tensor([2]), target_layer=0)


def test_single_layer_methods_agree():
    single = random_set("jump_relu", skip=True)[1]
    x = uniform(4, 5)
    sparse, rows = single.encode_sparse(x)
    acts = single.encode(x)
    acts[0] = 0
    torch.testing.assert_close(sparse.to_dense(), acts)
    reconstruction, scaled = single.decode_sparse(sparse)
    torch.testing.assert_close(reconstruction, single.decode(acts))
    index = sparse.indices()[1]
    torch.testing.assert_close(rows, single.W_enc[index])
    torch.testing.assert_close(scaled, single.W_dec[index] * sparse.values()[:, None])
    torch.testing.assert_close(single(x), single.decode(single.encode(x)) + x @ single.W_skip.T)


def test_parameters_are_assigned_like_attributes():
    clt = random_clt("jump_relu", skip=True)
    for name, shape in (("W_enc", (3, 13, 5)), ("b_enc", (3, 13)), ("b_dec", (3, 5)), ("W_skip", (3, 5, 5))):
        value = uniform(*shape, dtype=torch.float64)
        setattr(clt, name, value)
        assert torch.equal(getattr(clt, name), value)
        with pytest.raises(InputError, match=name):
            setattr(clt, name, value[:-1])
    clt.W_dec = [uniform(13, 3 - layer, 5, dtype=torch.float64) for layer in range(3)]
    assert clt.decoder_rows(2, torch.tensor([4])).dtype == torch.float64
    with pytest.raises(InputError, match="W_dec must be a list"):
        clt.W_dec = [uniform(13, 3, 5)] * 3
    assert not any(parameter.requires_grad for parameter in clt.parameters())


def test_lazy_attributes_load_everything_and_can_be_replaced(tmp_path):
    original = random_clt()
    save_transcoders(original, tmp_path)
    lazy = CrossLayerTranscoder(3, 13, 5, lazy_encoder=True, dtype=torch.float32, clt_path=str(tmp_path))
    assert torch.equal(lazy.W_enc, original.W_enc)
    assert all(torch.equal(a, b) for a, b in zip(lazy.W_dec, original.W_dec, strict=True))
    assert "W_enc" not in dict(lazy.named_parameters())
    lazy.W_enc = original.W_enc * 2
    assert torch.equal(lazy.encoder_rows(0, torch.tensor([3]))[0], original.W_enc[0, [3]] * 2)

    per_layer = random_set()
    save_transcoders(per_layer, tmp_path / "set")
    path = str(tmp_path / "set" / "layer_1.safetensors")
    single = SingleLayerTranscoder(
        5, 13, ReLU(), 1, transcoder_path=path, lazy_encoder=True, lazy_decoder=True, dtype=torch.float32
    )
    assert torch.equal(single.W_dec, per_layer[1].W_dec)
    single.W_dec = per_layer[1].W_dec * 2
    assert torch.equal(single.decoder.rows(torch.tensor([3])), per_layer[1].W_dec[[3]] * 2)


def test_lazy_without_files_says_what_to_do():
    clt = CrossLayerTranscoder(3, 13, 5)
    with pytest.raises(InputError, match="give clt_path"):
        clt.decoder_rows(0, torch.tensor([0]))


def test_layers_may_have_different_numbers_of_features():
    layers = {}
    for layer, n_features in enumerate((4, 9)):
        single = SingleLayerTranscoder(5, n_features, ReLU(), layer, dtype=torch.float32)
        single.W_enc, single.W_dec = uniform(n_features, 5), uniform(n_features, 5)
        layers[layer] = single
    transcoders = TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out")
    x = uniform(2, 3, 5)
    acts = transcoders.encode(x)
    assert acts.shape == (2, 3, 9)
    expected = torch.stack([layers[layer](x[layer]) for layer in range(2)])
    torch.testing.assert_close(transcoders(x), expected)
    assert transcoders.n_features(0) == 4


def test_sets_of_misfits_are_errors():
    single = SingleLayerTranscoder(5, 4, ReLU(), 0)
    other = SingleLayerTranscoder(6, 4, ReLU(), 1)
    skipping = SingleLayerTranscoder(5, 4, ReLU(), 1, skip_connection=True)
    for layers, message in (
        ({-1: single, 2: single}, r"transcoders of layers \[-1\]"),
        ({}, "at least one layer"),
        ({0: single, 1: other}, "layer 1 has d_model 6, layer 0 has 5"),
        ({0: single, 1: skipping}, "skip connection"),
    ):
        with pytest.raises(InputError, match=message):
            TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out")


def test_activation_functions_of_torch_are_recognised_and_unknown_ones_refused():
    assert isinstance(SingleLayerTranscoder(5, 4, torch.nn.functional.relu, 0).activation_function, ReLU)
    with pytest.raises(InputError, match="unknown"):
        SingleLayerTranscoder(5, 4, torch.sigmoid, 0)
    with pytest.raises(InputError, match="unknown"):
        CrossLayerTranscoder(3, 4, 5, "gelu")
    assert CrossLayerTranscoder(3, 4, 5, TopK(2)).activation(1).k == 2


def test_state_dict_names_are_circuit_tracers():
    assert set(random_clt("jump_relu").state_dict()) == {
        "W_enc", "b_enc", "b_dec", "activation_function.threshold", "W_dec.0", "W_dec.1", "W_dec.2",
    }  # fmt: skip
    assert "transcoders.0.activation_function.threshold" in random_set("jump_relu").state_dict()
