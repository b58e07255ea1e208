"""Why this expert: the router's logit is what the model's own router gives, and its row adds up to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.expert_targets import expert_target
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.run import read
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
LAYER, EXPERT, OTHER, POSITION = 1, 2, 0, 4


def model_of(name: str) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(name), tiny_transcoder(n_features=10), None, name)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_logit_is_the_routers_own(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        own: Any = model.hf_model(input_ids=IDS[None], output_router_logits=True).router_logits[LAYER]
    router = model.parts.layers[LAYER].mlp.get_submodule("router" if name == "gpt_oss" else "gate")
    logits = own.reshape(len(IDS), -1)[POSITION].double()
    bias = getattr(router, "bias", None)
    logits = logits if bias is None else logits - bias
    targets = [expert_target(model.parts, LAYER, EXPERT, versus, POSITION) for versus in (None, OTHER)]
    graph = attribute(IDS, model, attribution_targets=targets)
    assert graph.residual is not None
    assert graph.residual <= 1e-10
    x = read(model.parts, IDS, [("mlp.hook_in", LAYER)])["mlp.hook_in", LAYER][0, POSITION]
    found = [float(target.vector @ x) for target in targets]
    assert found == pytest.approx([float(logits[EXPERT]), float(logits[EXPERT] - logits[OTHER])], rel=1e-5)
    assert [target.label for target in targets] == ["expert 2 of layer 1", "expert 2 of layer 1 rather than 0"]


def test_experts_that_do_not_exist_are_refused() -> None:
    parts = model_of("mixtral").parts
    with pytest.raises(InputError, match="expert is 4; layer 1 has experts 0 to 3"):
        expert_target(parts, LAYER, 4)
    with pytest.raises(InputError, match="expert is -1"):
        expert_target(parts, LAYER, 0, versus=-1)
    with pytest.raises(UnsupportedModelError, match=r"LlamaMLP.* no router"):
        expert_target(model_of("llama").parts, LAYER, 0)
