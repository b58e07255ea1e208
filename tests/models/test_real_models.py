"""Real weights: SmolLM2-135M-Instruct and Gemma 3 270M (tests/support/real_models.py).

CIRCUIT_TRACER_TEST_MODELS=DIR pytest -m real_model tests/models
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.models.capture import capture, logits_at
from circuit_tracer.models.run import implementation
from circuit_tracer.models.verify import replay
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.real_models import real_model

pytestmark = [pytest.mark.real_model, pytest.mark.slow("the first test of a model waits until its file is read")]
PROMPT = "The capital of France is"
# architecture, rank of " Paris" among the next tokens
MODELS = {"smollm2": ("llama", 1), "gemma3": ("gemma3_text", 3)}
each_model = pytest.mark.parametrize("name", MODELS)
each_placement = pytest.mark.parametrize(
    ("kind", "skip", "input_hook", "output_hook"),
    [
        ("clt", False, "hook_resid_mid", "hook_mlp_out"),
        ("clt", True, "mlp.hook_in", "mlp.hook_out"),
        ("plt", True, "ln2.hook_normalized", "hook_mlp_out"),
    ],
    ids=["clt", "clt-skip", "plt-skip"],
)


def model_of(name: str, dtype: torch.dtype = torch.float32, **transcoder: Any) -> ReplacementModel:
    return real_model(name, dtype, activation="topk", n_features=32, **transcoder)


@each_model
def test_architecture_and_answer(name: str) -> None:
    model = model_of(name)
    assert model.parts.architecture.model_type == MODELS[name][0]
    captured = capture(model.parts, model.ensure_tokenized(PROMPT))
    best = torch.topk(logits_at(model.parts, captured.final[-1:])[0], 5).indices.tolist()
    assert model.tokenizer.decode([best[MODELS[name][1] - 1]]) == " Paris"


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_frozen_network_replays_the_models_own_forward_pass(name: str, dtype: torch.dtype) -> None:
    model = model_of(name, dtype)
    ids = model.ensure_tokenized(PROMPT + " Paris, and the capital of Spain is")
    captured = capture(model.parts, ids)
    inputs, final = replay(model.parts, captured)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    for found, layer in zip(inputs, captured.layers, strict=True):
        assert float((found - layer.resid_mid).abs().max() / layer.resid_mid.abs().max()) <= tolerance
    assert float((final - captured.final).abs().max() / captured.final.abs().max()) <= tolerance
    with torch.no_grad(), implementation(model.parts, "eager"):
        expected = model.hf_model(input_ids=ids[None], use_cache=False).logits[0]
    assert float((logits_at(model.parts, captured.final) - expected).abs().max()) <= 1e-3


@each_model
@each_placement
def test_sum_rule_holds_on_every_row(name: str, kind: str, skip: bool, input_hook: str, output_hook: str) -> None:
    model = model_of(name, kind=kind, skip=skip, input_hook=input_hook, output_hook=output_hook)
    graph = attribute(PROMPT, model, max_n_logits=5)
    assert graph.balance is not None
    assert len(graph.selected_features) == 3 * model.cfg.n_layers * (graph.n_pos - 1)
    assert float(graph.balance.residual(graph.edges).max()) <= 1e-5
    assert graph.logit_targets[MODELS[name][1] - 1].token_str == " Paris"


@each_model
def test_a_budget_keeps_the_sum_rule_and_the_rows(name: str) -> None:
    model = model_of(name, kind="clt")
    graph = attribute(PROMPT, model, max_n_logits=3, max_feature_nodes=60, batch_size=17)
    assert graph.residual is not None
    assert graph.residual <= 1e-5
    again = attribute(PROMPT, model, max_n_logits=3, max_feature_nodes=60)
    assert torch.equal(graph.selected_features, again.selected_features)
