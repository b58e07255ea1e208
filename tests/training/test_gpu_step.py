"""The step as a GPU takes it: equal to the dense reference under Triton's interpreter, and counted at full size.

What is counted is what `tests/support/counted.py` sees; limits are those that the step was made for.
"""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.kernels.device import kernels_on
from circuit_tracer.training.config.files import load
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import selection
from circuit_tracer.training.sparsity.ranking import kth_largest
from circuit_tracer.training.sparsity.selection import Rooms
from tests.support.counted import Work, counted
from tests.support.reference_cases import Case

pytest.importorskip("triton", reason="triton is not installed here")

from tests.training.test_step import compare

CASES = [
    Case("clt", "batch_topk", n_layers=2),
    Case("skip", "jumprelu", band_probability=0.5, n_layers=2),
    Case("plt", "topk", pattern="repeated", n_layers=2),
]
MORE = [
    Case("clt", "relu"),
    Case("clt", "jumprelu"),
    Case("clt", "topk", dead="all"),
    Case("sae", "batch_topk", dead="none"),
    Case("clt", "batch_topk", pattern="none"),
    Case("clt", "batch_topk", pattern="repeated"),
    Case("clt", "batch_topk", n_tokens=63, n_features=37),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted where there is no GPU")
@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow("kernels are interpreted")) for case in MORE)],
    ids=str,
)
def test_loss_and_every_gradient_are_those_of_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms are too small at first."""
    monkeypatch.setattr(selection, "ROOM_STEP", 4)
    with kernels_on("cpu"):
        compare(case)


AUX = {"sparsity.aux_active": "32", "sparsity.pre_activation_weight": "0"}
STEPS: dict[str, tuple[dict[str, str], float]] = {  # changes, share of dead features
    "none dead": ({}, 0.0),
    "5 % dead": ({}, 0.05),
    "AuxK": (AUX, 0.05),
}


@pytest.fixture(scope="module")
def gpt2() -> dict[str, Work]:
    """A step of GPT-2's preset at its full size."""
    return {name: counted(load("gpt2", changes), 12, 768, dead=dead) for name, (changes, dead) in STEPS.items()}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_few_operations_and_waits(gpt2: dict[str, Work], name: str) -> None:
    work = gpt2[name]
    assert work.launches <= 150 * 12, work.operations.most_common(20)
    assert work.waits == 2
    assert work.host_bytes <= 1024


def test_adam_is_one_operation_a_parameter(gpt2: dict[str, Work]) -> None:
    assert gpt2["none dead"].operations["adam/adam"] == 3 * 12 + 1
    assert [name for name in gpt2["none dead"].operations if name.startswith("adam/")] == ["adam/adam"]


def test_rooms_follow_what_was_found() -> None:
    rooms = Rooms([4096, 4096, 81920])
    rooms.learn([3000, 5000, 5000])
    assert rooms.sizes == [4096, 8192, 8192]
    rooms.learn([3000, 5100, 6000])
    assert rooms.sizes == [4096, 8192, 8192]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [0, 1, 7, 40, 41], ids=lambda k: f"k{k}")
def test_the_kth_largest_is_that_of_a_sort(k: int, dtype: torch.dtype) -> None:
    """Of 40 scores, some of them equal; zeros are none."""
    scores = torch.cat([torch.rand(30, dtype=dtype), torch.full((10,), 0.25, dtype=dtype), torch.zeros(9, dtype=dtype)])
    found = kth_largest(list(scores.split(20)), k, FeatureRanks())
    falling = scores.sort(descending=True).values
    assert float(found) == (float("inf") if k == 0 else float(falling[k - 1]))
    with kernels_on("cpu"):
        assert torch.equal(kth_largest([scores], k, FeatureRanks()), found)
