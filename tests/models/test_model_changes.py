"""What becomes of a model after it was wrapped: a run notices, and is right or says what is wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import CircuitTracerError, InputError, UnsupportedModelError
from circuit_tracer.models.run import ModelRun
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = [3, 17, 5, 17, 40, 8]
Call = Callable[[ReplacementModel], Any]
RUNS: dict[str, Call] = {
    "attribute": lambda model: attribute(IDS, model),
    "get_activations": lambda model: model.get_activations(IDS),
    "feature_intervention": lambda model: model.feature_intervention(IDS, [(0, 1, 2, 5.0)]),
    "generation": lambda model: model.feature_intervention_generate(IDS, [], max_new_tokens=2, return_type="tokens"),
}


def wrapped(kind: str = "llama", **settings: Any) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(kind, **settings), tiny_transcoder(), None, "x")


@pytest.mark.parametrize("run", RUNS)
def test_a_model_that_was_put_into_training_mode_is_refused(run: str) -> None:
    model = wrapped("gpt2", resid_pdrop=0.5)
    model.hf_model.train()
    with pytest.raises(UnsupportedModelError, match=r"training mode.*model\.eval\(\)"):
        RUNS[run](model)
    assert model.hf_model.training
    model.hf_model.eval()
    RUNS[run](model)


def test_training_mode_is_noticed_within_a_run() -> None:
    model = wrapped("gpt2", resid_pdrop=0.5)
    run = ModelRun(model.parts, {("hook_mlp_out", 0): lambda layer, x: model.hf_model.train() and None})
    with pytest.raises(UnsupportedModelError, match="training mode"):
        run(torch.tensor(IDS))


def test_a_norm_of_another_kind_is_noticed() -> None:
    model = wrapped()
    size = model.cfg.d_model
    model.hf_model.model.layers[1].input_layernorm = nn.LayerNorm(size, dtype=torch.float64).eval()
    for run in RUNS.values():
        with pytest.raises(UnsupportedModelError, match="logits of the captured pass"):
            run(model)


def test_a_projection_that_was_exchanged_counts() -> None:
    model = wrapped()
    before = attribute(IDS, model)
    projection = model.hf_model.model.layers[0].self_attn.v_proj
    other = nn.Linear(projection.in_features, projection.out_features, bias=False, dtype=torch.float64).eval()
    model.hf_model.model.layers[0].self_attn.v_proj = other
    after = attribute(IDS, model)
    assert not torch.equal(before.logit_probabilities, after.logit_probabilities)
    assert after.residual is not None
    assert after.residual <= 1e-10


def test_a_softcap_that_was_changed_counts() -> None:
    model = wrapped("gemma2")
    for cap in (None, 1.0):
        model.hf_model.config.final_logit_softcapping = cap
        logits, _ = model.get_activations(torch.tensor(IDS))
        ids = model.ensure_tokenized(IDS)[None]
        with torch.no_grad():
            torch.testing.assert_close(logits, model.hf_model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_hook_that_came_later_is_named() -> None:
    model = wrapped()

    def twice(module: nn.Module, given: Any, output: Any) -> Any:
        return 2 * output

    model.hf_model.model.layers[0].self_attn.o_proj.register_forward_hook(twice)
    with pytest.raises(UnsupportedModelError, match=r"o_proj.*has a hook, .*twice"):
        attribute(IDS, model)


def test_a_copy_made_within_a_run_takes_nothing_of_it_along() -> None:
    model = wrapped()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = model.hf_model(ids).logits
    with ModelRun(model.parts, {"hook_mlp_out": lambda layer, x: 2 * x}).active():
        copies = [copy.deepcopy(model.hf_model), pickle.loads(pickle.dumps(model.hf_model))]
    for each in copies:
        with torch.no_grad():
            assert torch.equal(each(ids).logits, expected)
        assert attribute(IDS, ReplacementModel.from_model(each, tiny_transcoder(), None, "x")).residual is not None


def longrope() -> ReplacementModel:
    size = 4
    scaled = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 4}
    factors = {"short_factor": [1.0] * (size // 2), "long_factor": [3.0] * (size // 2)}
    return wrapped("phi3", rope_parameters=scaled | factors, original_max_position_embeddings=4)


def test_frequencies_of_another_threads_prompt_do_not_get_into_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the module itself answers may be for a short prompt of another pass, which has written in it meanwhile."""
    model = longrope()
    rotary = model.hf_model.model.rotary_emb
    ids = torch.tensor(IDS)
    expected = ModelRun(model.parts)(ids).final
    forward, short = type(rotary).forward, torch.tensor([[0, 1]])

    def disturbed(self: nn.Module, x: Any, position_ids: Any) -> Any:
        return forward(self, x, short if self is rotary else position_ids)

    monkeypatch.setattr(type(rotary), "forward", disturbed)
    assert torch.equal(ModelRun(model.parts)(ids).final, expected)


def test_a_run_on_a_long_prompt_leaves_the_frequencies_as_they_were() -> None:
    """Once they have grown, transformers' dynamic ones stay so for prompts that are shorter, of other threads too."""
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = wrapped("llama", rope_parameters=scaled, max_position_embeddings=2)
    short, long = torch.tensor(IDS[:3]), torch.tensor(IDS * 4)
    before = model.hf_model.model.rotary_emb.inv_freq.clone()
    expected = ModelRun(model.parts)(short).final
    ModelRun(model.parts)(long)
    assert torch.equal(model.hf_model.model.rotary_emb.inv_freq, before)
    assert torch.equal(ModelRun(model.parts)(short).final, expected)


WRONG: dict[str, tuple[Call, str]] = {
    "transcoders with their configuration": (
        lambda model: ReplacementModel.from_model(model.hf_model, (model.transcoders, {}), None, "x"),  # type: ignore[arg-type]
        "transcoders is .*expected 'neurons' or Transcoders",
    ),
    "a configuration that is none": (lambda model: ReplacementModel.from_config(5, model.transcoders), "config is 5"),
    "a device that is not there": (lambda model: model.to("cuda:99"), "cuda:99"),
    "a dtype that is none": (lambda model: model.to(torch.int8), "int8"),
    "positions in steps of nothing": (
        lambda model: model.feature_intervention(IDS, [(0, slice(None, None, 0), 2, 1.0)]),
        "step cannot be zero",
    ),
    "a temperature beyond float32": (
        lambda model: model.feature_intervention_generate(IDS, [], temperature=1e39),
        "finite in float32",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case: str) -> None:
    call, expected = WRONG[case]
    with pytest.raises(InputError, match=expected):
        call(wrapped())


@pytest.mark.parametrize("device", ["cuda:99", "nope"])
def test_a_device_that_cannot_be_used_is_said(device: Any) -> None:
    with pytest.raises(CircuitTracerError, match="device"):
        ReplacementModel.from_pretrained("nowhere", "nowhere", device=device)
