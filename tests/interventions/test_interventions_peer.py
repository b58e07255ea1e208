"""The same interventions give what circuit-tracer 0.5.0 gave (recorded by `record_peer.py`)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from circuit_tracer import ReplacementModel
from tests.support.peer_cases import FOLDER, IDS, OPTIONS, OUTPUTS, PLACES, TRANSCODERS, outcomes

CASES = [
    "clean",
    *(f"{place}/{option}" for place in PLACES for option in OPTIONS),
    "generation/default",
    "generation/all held",
]
# float32 on both sides, in other orders of addition; seen: 5e-7 of the largest value
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(OUTPUTS)


@pytest.fixture(scope="module", params=TRANSCODERS)
def found(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    model = ReplacementModel.from_pretrained(FOLDER / "model", FOLDER / request.param, device="cpu")
    return request.param, outcomes(model, torch.tensor(IDS), request.param)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_circuit_tracer(
    case: str, found: tuple[str, dict[str, Tensor]], recorded: dict[str, Tensor]
) -> None:
    transcoder, ours = found
    names = [name for name in recorded if name.startswith(f"{transcoder}/{case}/")]
    assert {name.rsplit("/", 1)[1] for name in names} >= {"logits", "activations"}
    for name in names:
        torch.testing.assert_close(
            ours[name], recorded[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
