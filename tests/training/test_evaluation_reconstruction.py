"""Reconstruction on held-out tokens, against the definitions written densely."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.evaluation import EvaluationSettings, GivenActivations, evaluate
from circuit_tracer.training.evaluation.reconstruction import measure
from circuit_tracer.training.evaluation.results import DENSITY_EDGES, HeldOutReconstruction
from circuit_tracer.transcoders import Transcoders
from circuit_tracer.transcoders.writes import reconstruct
from tests.support.evaluation_cases import (
    ALL_TOKENS,
    numbers_of,
    parts_of,
    perfect_pair,
    sequences,
    silent_dictionary,
    true_activations,
)
from tests.support.tiny import tiny_transcoder

ONLY_RECONSTRUCTION = replace(ALL_TOKENS, replacement_tokens=0)


def found(
    parts: ModelParts, transcoders: Transcoders, given_tokens: list[Tensor], **changes: object
) -> HeldOutReconstruction:
    chosen = replace(ONLY_RECONSTRUCTION, **changes)  # type: ignore[arg-type]
    return evaluate(parts, None, transcoders, given_tokens, chosen).results["dictionary"].reconstruction


def given_pair(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 3, 16, generator=generator, dtype=torch.float64)
    return x, y + 3


@pytest.mark.few
@pytest.mark.parametrize("kind", ["clt", "plt"])
@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
@pytest.mark.parametrize("skip", [False, True])
def test_numbers_are_the_definitions_on_the_models_own_activations(kind: str, activation: str, skip: bool) -> None:
    parts = parts_of("gemma2")
    transcoders = tiny_transcoder(kind, activation=activation, skip=skip)
    tokens = sequences()
    pairs = [true_activations(parts, transcoders, ids) for ids in tokens]
    x_LND, y_LND = (torch.cat([pair[side][:, 1:] for pair in pairs], dim=1) for side in (0, 1))
    active_LNF = transcoders.encode(x_LND)
    y_hat_LND = transcoders.decode(active_LNF, x_LND)
    error_L = (y_hat_LND - y_LND).square().sum((1, 2))
    spread_L = (y_LND - y_LND.mean(1, keepdim=True)).square().sum((1, 2))
    density_LF = (active_LNF != 0).double().mean(1)

    result = found(parts, transcoders, tokens)
    assert result.tokens == sum(len(ids) - 1 for ids in tokens)
    assert result.nmse == pytest.approx((error_L / spread_L).tolist(), rel=1e-5)  # norms round to float32 in the model
    assert result.l0 == pytest.approx(density_LF.sum(1).tolist())
    assert result.never_active == (density_LF == 0).sum(1).tolist()
    assert result.max_density == pytest.approx(density_LF.amax(1).tolist())
    assert [sum(row) for row in result.density_histogram] == (density_LF > 0).sum(1).tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 23), st.sampled_from(["clt", "plt"]), st.booleans(), st.sampled_from(["relu", "jump_relu", "topk"])
)
def test_batches_change_nothing_and_equal_the_dense_forward(n: int, kind: str, skip: bool, activation: str) -> None:
    transcoders = tiny_transcoder(kind, activation=activation, skip=skip)
    x, y = given_pair()
    y_hat, counts = reconstruct(transcoders, x)
    torch.testing.assert_close(y_hat, transcoders(x.transpose(0, 1)).transpose(0, 1))
    in_batches, mean = measure({"one": transcoders}, GivenActivations(x, y, batch_tokens=n))
    whole, _ = measure({"one": transcoders}, GivenActivations(x, y))
    assert in_batches["one"].nmse == pytest.approx(whole["one"].nmse, rel=1e-12)
    assert replace(in_batches["one"], nmse=[]) == replace(whole["one"], nmse=[])
    torch.testing.assert_close(mean, y.mean(0))
    assert [int(one.sum()) for one in counts] == [round(40 * l0) for l0 in whole["one"].l0]


def test_blocks_of_decoder_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuit_tracer.transcoders import writes

    transcoders, (x, _) = tiny_transcoder("clt"), given_pair()
    whole, _ = reconstruct(transcoders, x)
    monkeypatch.setattr(writes, "BLOCK_BYTES", 3 * 16 * 8 * 2)
    torch.testing.assert_close(reconstruct(transcoders, x)[0], whole)


def test_order_and_batch_size_change_no_bit_or_only_rounding() -> None:
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences(7)
    settings = EvaluationSettings(calibration_tokens=20)
    one = evaluate(parts, None, transcoders, tokens, settings)
    assert evaluate(parts, None, transcoders, tokens[::-1], settings).to_json() == one.to_json()
    other = evaluate(parts, None, transcoders, tokens, replace(settings, batch_tokens=1))
    for name, result in one.results.items():
        assert other.results[name].reconstruction.nmse == pytest.approx(result.reconstruction.nmse, rel=1e-9)
        assert other.results[name].reconstruction.l0 == result.reconstruction.l0
        ours, theirs = numbers_of(other.results[name].replacement), numbers_of(result.replacement)
        assert ours == pytest.approx(theirs, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_a_perfect_dictionary_has_no_error(kind: str) -> None:
    parts, transcoders = perfect_pair(kind)
    assert max(found(parts, transcoders, sequences()).nmse) < 1e-12


def test_the_mean_as_a_reconstruction_has_error_one() -> None:
    x, y = given_pair()
    result, _ = measure({"mean": silent_dictionary(y.mean(0))}, GivenActivations(x, y, batch_tokens=7))
    assert result["mean"].nmse == pytest.approx([1.0] * 3, rel=1e-12)
    assert result["mean"].l0 == [0.0] * 3
    assert result["mean"].never_active == result["mean"].features == [20] * 3
    assert result["mean"].dead_share == 1


def test_a_large_mean_costs_no_precision() -> None:
    x, y = given_pair()
    shift = silent_dictionary(y.mean(0) + 1e8)
    result, _ = measure({"mean": shift}, GivenActivations(x, y + 1e8, batch_tokens=7))
    assert result["mean"].nmse == pytest.approx([1.0] * 3, rel=1e-5)


def test_densities_fall_into_half_decades() -> None:
    parts, transcoders = perfect_pair("plt")
    result = found(parts, transcoders, sequences(40))
    assert all(len(row) == len(DENSITY_EDGES) - 1 for row in result.density_histogram)
    always = sum(row[-1] for row in result.density_histogram)
    assert always > 0
    assert not any(any(row[:8]) for row in result.density_histogram)  # nothing fires on less than a token of 300


def test_a_density_at_an_edge_counts_below_it() -> None:
    from circuit_tracer.training.evaluation.reconstruction import _histogram

    counts = _histogram(torch.tensor([0.0, 0.1, 0.1000001, 1.0, 1e-9], dtype=torch.float64))
    assert (counts[11], counts[12], counts[13], counts[0]) == (1, 1, 1, 1)
    assert sum(counts) == 4


def test_norm_outliers_and_special_tokens_are_left_out() -> None:
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id, all_special_ids = 1, 2, 0, [0, 1, 2]

    parts, transcoders = parts_of(), tiny_transcoder("clt")
    parts.model.get_input_embeddings().weight[7] *= 1e4
    plain = [torch.tensor([1, 5, 9, 11, 30, 8]), torch.tensor([1, 12, 40, 41, 33, 21])]
    marked = [torch.tensor([1, 5, 9, 11, 30, 8, 7]), torch.tensor([1, 12, 40, 41, 33, 21, 2])]
    settings = replace(ONLY_RECONSTRUCTION, max_norm_ratio=10.0)
    expected = evaluate(parts, Tokenizer(), transcoders, plain, settings)
    evaluation = evaluate(parts, Tokenizer(), transcoders, marked, settings)
    assert evaluation.conditions["data"]["norm_outliers_left_out"] == 1
    assert evaluation.results["dictionary"].reconstruction.tokens == 10
    assert evaluation.results["dictionary"].reconstruction.nmse == pytest.approx(
        expected.results["dictionary"].reconstruction.nmse, rel=1e-9
    )


def test_tokens_are_whole_sequences_up_to_the_number_asked_for() -> None:
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences(6, 9)
    assert found(parts, transcoders, tokens, tokens=17).tokens == 15
    assert found(parts, transcoders, tokens, tokens=16).tokens == 8
    assert found(parts, transcoders, tokens, tokens=1).tokens == 8


def test_one_token_has_no_variance() -> None:
    evaluation = evaluate(parts_of(), None, tiny_transcoder("clt"), [torch.tensor([4, 5])], ONLY_RECONSTRUCTION)
    assert evaluation.to_json()["results"]["dictionary"]["reconstruction"]["nmse"] == [None] * 3
    assert evaluation.results["dictionary"].reconstruction.tokens == 1


@pytest.mark.parametrize("tokens", [[], [torch.tensor([], dtype=torch.int64)], [torch.tensor([4])]])
def test_nothing_to_evaluate_on_is_said(tokens: list[Tensor]) -> None:
    with pytest.raises(InputError, match=r"no held-out token.*longer text"):
        evaluate(parts_of(), None, tiny_transcoder("clt"), tokens, ONLY_RECONSTRUCTION)


def test_bad_sequences_are_refused_by_number() -> None:
    def attempt(*tokens: Tensor) -> None:
        evaluate(parts_of(), None, tiny_transcoder("clt"), list(tokens), ONLY_RECONSTRUCTION)

    good = torch.tensor([3, 4, 5])
    with pytest.raises(InputError, match=r"sequence 1 is torch.float32"):
        attempt(good, good.float())
    with pytest.raises(InputError, match=r"sequence 0 has 65 tokens; the model reads at most 64"):
        attempt(torch.arange(65) % 40)
    with pytest.raises(CompatibilityError, match=r"ids 3..47; the model's vocabulary is 0..46"):
        attempt(torch.tensor([3, 47]))


def test_nan_is_an_error_that_names_the_layer() -> None:
    parts, transcoders = parts_of(), tiny_transcoder("clt")
    transcoders.W_dec[1].data[:, 1] = torch.nan
    with pytest.raises(NumericalError, match="reconstruction of layer 2 is not finite"):
        found(parts, transcoders, sequences())
    transcoders = tiny_transcoder("plt")
    transcoders[1].W_enc.data[3] = torch.nan
    with pytest.raises(NumericalError, match="layer 1"):
        found(parts, transcoders, sequences())
    parts.layers[2].mlp.up_proj.weight.data[0] = torch.nan
    with pytest.raises(NumericalError, match="hook_mlp_out of layer 2"):
        found(parts, tiny_transcoder("clt"), sequences())


def test_a_dictionary_of_another_model_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="d_model 8"):
        found(parts_of(), tiny_transcoder("clt", d_model=8), sequences())
    with pytest.raises(CompatibilityError, match="2 layers"):
        found(parts_of(), tiny_transcoder("clt", n_layers=2), sequences())


def test_given_activations_need_no_pass_of_the_model() -> None:
    parts, transcoders, (x, y) = parts_of(), tiny_transcoder("clt"), given_pair()
    evaluation = evaluate(parts, None, transcoders, [], ONLY_RECONSTRUCTION, activations=GivenActivations(x, y))
    assert (
        evaluation.results["dictionary"].reconstruction == measure({"d": transcoders}, GivenActivations(x, y))[0]["d"]
    )
    assert evaluation.conditions["data"] == {"activations_given": 40}
    with pytest.raises(InputError, match="replacement is measured on token sequences"):
        evaluate(parts, None, transcoders, [], ALL_TOKENS, activations=GivenActivations(x, y))
    with pytest.raises(InputError, match=r"\(40, 3, 16\) and \(39, 3, 16\)"):
        GivenActivations(x, y[1:])


@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post"])
def test_autoencoders_of_some_layers_are_reconstructed(point: str) -> None:
    parts, layers = parts_of(), (0, 2)
    transcoders = tiny_transcoder("plt", n_layers=2, input_hook=point, output_hook=point)
    evaluation = evaluate(parts, None, transcoders, sequences(), ONLY_RECONSTRUCTION, layers=layers)
    seen: dict[int, Tensor] = {}
    hidden = parts.model.base_model(input_ids=torch.stack(sequences(1)), output_hidden_states=True).hidden_states
    one = evaluate(parts, None, transcoders, sequences(1), ONLY_RECONSTRUCTION, layers=layers)
    if point != "hook_resid_mid":
        seen = {layer: hidden[layer + (point == "hook_resid_post")][0, 1:] for layer in layers[:1]}
        x = seen[0]
        error = (transcoders[0](x) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert one.results["dictionary"].reconstruction.nmse[0] == pytest.approx(float(error), rel=1e-5)
    assert evaluation.conditions["layers"] == [0, 2]
    assert len(evaluation.results["dictionary"].reconstruction.nmse) == 2
    assert "sparse autoencoders" in evaluation.results["dictionary"].what
    with pytest.raises(CompatibilityError, match=r"layers \[1\]"):
        evaluate(parts, None, transcoders, sequences(), ONLY_RECONSTRUCTION, layers=[1])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="batch_tokens is 0"):
        EvaluationSettings(batch_tokens=0)
    with pytest.raises(InputError, match="max_norm_ratio is 1"):
        EvaluationSettings(max_norm_ratio=1.0)
