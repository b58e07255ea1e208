"""The model with all MLPs replaced, against hooks written plainly and against laws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, in_rows
from circuit_tracer.training.evaluation import Evaluation, evaluate
from circuit_tracer.training.evaluation.passes import run
from circuit_tracer.training.evaluation.replacement import compare, final_outputs
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.stand_ins import Constant, Reconstructions
from circuit_tracer.transcoders import Transcoders
from tests.support.evaluation_cases import (
    ALL_TOKENS,
    numbers_of,
    parts_of,
    perfect_pair,
    sequences,
    silent_dictionary,
    true_activations,
)
from tests.support.tiny import ARCHITECTURES, tiny_transcoder

HOOKS = [("hook_resid_mid", "hook_mlp_out"), ("mlp.hook_in", "mlp.hook_out"), ("ln2.hook_normalized", "hook_mlp_out")]


def points_of(parts: ModelParts, transcoders: Transcoders) -> Points:
    layers = tuple(range(parts.config.n_layers))
    return Points(layers, transcoders.feature_input_hook, transcoders.feature_output_hook)


def naive_final(parts: ModelParts, transcoders: Transcoders, ids: Tensor) -> Tensor:
    """One sequence through the hooks of interventions, dense activations, one pair of layers at a time."""
    acts: dict[int, Tensor] = {}
    inputs: dict[int, Tensor] = {}

    def read(layer: int, x_PD: Tensor) -> None:
        inputs[layer], acts[layer] = x_PD, transcoders.encode_layer(x_PD, layer)

    def write(layer: int, y_PD: Tensor) -> Tensor:
        out = transcoders.decoder_bias(layer).expand_as(y_PD).clone()
        for source in range(layer + 1):
            targets = transcoders.target_layers(source)
            if layer in targets:
                out += acts[source] @ transcoders.decoder(source).whole()[:, layer - targets.start]
        skip = transcoders.skip_matrix(layer)
        if skip is not None:
            out += inputs[layer] @ skip
        out[0] = y_PD[0]
        return out

    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    return ModelRun(parts, {hooks[0]: in_rows(parts, read), hooks[1]: in_rows(parts, write)})(ids).final[0]


@pytest.mark.few
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replaced_passes_equal_plain_hooks_on_every_architecture(architecture: str) -> None:
    parts, number = parts_of(architecture), ARCHITECTURES.index(architecture)
    input_hook, output_hook = HOOKS[number % (2 if architecture == "olmo2" else 3)]
    transcoders = tiny_transcoder(
        ("clt", "plt")[number % 2], activation=("relu", "jump_relu", "topk")[number % 3], skip=number % 4 < 2,
        input_hook=input_hook, output_hook=output_hook,
    )  # fmt: skip
    ids_BP = torch.stack(sequences(6)[::2])
    found = final_outputs(parts, ids_BP, points_of(parts, transcoders), Reconstructions(transcoders))
    expected = torch.cat([naive_final(parts, transcoders, ids) for ids in ids_BP])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # norms round to float32 in the model
    own = torch.cat([ModelRun(parts)(ids).final[0] for ids in ids_BP])
    torch.testing.assert_close(run(parts, ids_BP), own, rtol=1e-5, atol=1e-6)
    assert (found.view(3, 9, -1)[:, 0] == run(parts, ids_BP).view(3, 9, -1)[:, 0]).all()
    assert (found - own).view(3, 9, -1)[:, 1:].abs().max() > 0.05


@pytest.mark.slow("takes 1.2 s")
def test_numbers_are_the_definitions() -> None:
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences(40)
    parts.unembed.weight.data *= 8  # so that the model is sure now and then
    tokens = [sure(parts, ids) for ids in tokens]
    evaluation = evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
    own, other, following = [], [], []
    for ids in tokens:
        own.append(logits_at(parts, ModelRun(parts)(ids).final[0])[1:-1].log_softmax(-1))
        other.append(logits_at(parts, naive_final(parts, transcoders, ids))[1:-1].log_softmax(-1))
        following.append(ids[2:])
    p, q, truth = torch.cat(own), torch.cat(other), torch.cat(following)
    best, same = p.argmax(-1), p.argmax(-1) == q.argmax(-1)
    chosen = (best == truth) & (p.amax(-1).exp() < 0.8)
    found, model = evaluation.results["dictionary"].replacement, evaluation.model
    assert found is not None
    assert model is not None
    assert model.predictions == len(truth) == sum(len(ids) - 2 for ids in tokens)
    assert 0 < model.filtered_predictions == int(chosen.sum()) < int((best == truth).sum())
    assert model.accuracy == pytest.approx(float((best == truth).double().mean()))
    assert model.cross_entropy == pytest.approx(-float(p[range(len(truth)), truth].mean()), rel=1e-5)
    assert found.cross_entropy == pytest.approx(-float(q[range(len(truth)), truth].mean()), rel=1e-5)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found.top1 == pytest.approx(float(same.double().mean()))
    assert found.top1_filtered == pytest.approx(float(same[chosen].double().mean()))
    zero = evaluation.ablations["zero"].cross_entropy
    assert found.ce_recovered == pytest.approx((zero - found.cross_entropy) / (zero - model.cross_entropy))


def sure(parts: ModelParts, ids: Tensor) -> Tensor:
    """The same sequence, every other token the one the model expects."""
    ids = ids.clone()
    for place in range(2, len(ids), 2):
        ids[place] = logits_at(parts, ModelRun(parts)(ids[:place]).final[0])[-1].argmax()
    return ids


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_a_perfect_dictionary_is_the_model(kind: str) -> None:
    parts, transcoders = perfect_pair(kind)
    evaluation = evaluate(parts, None, transcoders, sequences(), ALL_TOKENS)
    found = evaluation.results["dictionary"].replacement
    assert found is not None
    assert found.kl == pytest.approx(0, abs=1e-10)
    assert found.top1 == 1
    assert found.ce_recovered == pytest.approx(1, abs=1e-6)


def test_a_silent_dictionary_is_zero_ablation_and_the_mean_one_is_mean_ablation() -> None:
    parts, tokens = parts_of("gemma3"), sequences()
    zero = silent_dictionary(torch.zeros(3, 16, dtype=torch.float64))
    outputs = torch.cat([true_activations(parts, zero, ids)[1][:, 1:] for ids in tokens], dim=1)
    for name, transcoders in (("zero", zero), ("mean", silent_dictionary(outputs.mean(1)))):
        evaluation = evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
        found, expected = evaluation.results["dictionary"].replacement, evaluation.ablations[name]
        assert numbers_of(found) == pytest.approx(numbers_of(expected), rel=1e-5, abs=1e-8, nan_ok=True)
    assert evaluation.ablations["zero"].ce_recovered == 0


def test_zero_ablation_is_the_model_without_mlps() -> None:
    parts, ids_BP = parts_of(), torch.stack(sequences(3)[::2])
    points = Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out")
    found = final_outputs(parts, ids_BP, points, Constant(torch.zeros(3, 16)))

    def zero(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], torch.zeros_like(output[:, 1:])], 1)

    for layer in parts.layers:
        layer.mlp.register_forward_hook(zero)
    torch.testing.assert_close(found, run(parts, ids_BP))


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences()
    before = run(parts, tokens[0][None])
    evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
    transcoders.b_dec.data[1] = torch.inf
    with pytest.raises(NumericalError):
        final_outputs(parts, tokens[0][None], points_of(parts, transcoders), Reconstructions(transcoders))
    assert torch.equal(run(parts, tokens[0][None]), before)
    assert parts.model.config._attn_implementation == "eager"


def test_sequences_without_predictions_are_refused() -> None:
    parts, transcoders = parts_of(), tiny_transcoder("clt")
    with pytest.raises(InputError, match=r"no prediction.*replacement_tokens 0"):
        evaluate(parts, None, transcoders, [torch.tensor([3, 4])], ALL_TOKENS)
    one = evaluate(parts, None, transcoders, [torch.tensor([3, 4]), torch.tensor([3, 4, 5])], ALL_TOKENS)
    assert one.model is not None
    assert one.model.predictions == 1


def test_special_tokens_predict_nothing_but_may_be_predicted() -> None:
    parts, transcoders = parts_of(), tiny_transcoder("clt")
    held_out = Sequences([torch.tensor([1, 5, 6, 2, 7, 8])], dropped=(0, 1, 2))
    comparison = compare(parts, {"zero": (points_of(parts, transcoders), Constant(torch.zeros(3, 16)))}, held_out, 100)
    assert comparison.model().predictions == 3  # 5 -> 6, 6 -> end, 7 -> 8


def test_logits_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuit_tracer.training.evaluation import replacement

    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences()
    whole = evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
    monkeypatch.setattr(replacement, "LOGIT_BYTES", 47 * 8 * 3)
    chunked = evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
    assert chunked.to_json() == whole.to_json()


def test_replacement_reads_a_part_of_the_tokens() -> None:
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences(10)
    evaluation = evaluate(parts, None, transcoders, tokens, replace(ALL_TOKENS, replacement_tokens=20))
    assert evaluation.model is not None
    assert evaluation.model.predictions in (12, 13, 14)  # two sequences of eight or nine tokens
    assert evaluation.results["dictionary"].reconstruction.tokens == 75


def test_a_per_layer_dictionary_stands_beside_with_its_own_hooks() -> None:
    parts, tokens, hooks = parts_of(), sequences(), {"input_hook": "mlp.hook_in", "output_hook": "mlp.hook_out"}
    clt, plt = tiny_transcoder("clt"), tiny_transcoder("plt", **hooks)
    both = evaluate(parts, None, clt, tokens, ALL_TOKENS, per_layer=plt)
    alone = evaluate(parts, None, plt, tokens, ALL_TOKENS)
    assert list(both.results) == ["dictionary", "per_layer"]
    assert_same(both.results["per_layer"], alone.results["dictionary"])
    assert_same(both.results["dictionary"], evaluate(parts, None, clt, tokens, ALL_TOKENS).results["dictionary"])


def assert_same(one: Any, other: Any) -> None:
    """Equal but for the share of nothing, which is NaN."""
    rounded = [Evaluation({}, {"dictionary": each}).to_json() for each in (one, other)]
    assert rounded[0] == rounded[1]


def test_bfloat16_models_run() -> None:
    parts = parts_of("gemma2", torch.bfloat16)
    evaluation = evaluate(parts, None, tiny_transcoder("clt", torch.float32), sequences(), ALL_TOKENS)
    assert evaluation.model is not None
    assert math.isfinite(evaluation.model.cross_entropy)
    assert evaluation.conditions["model_dtype"] == "bfloat16"
