"""Several ranks that share a pass see the rows that one sees alone, in the same order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import ActivationBatch, open_stream
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support import data_cases
from tests.support.data_cases import batches, config, tensors, texts, write_jsonl
from tests.support.tiny import tiny_model


@dataclass
class Meeting:
    """Where the threads that play ranks exchange tensors."""

    world: int
    slots: dict[int, Tensor] = field(default_factory=dict)
    door: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.door = threading.Barrier(self.world, timeout=30)


class ThreadRanks(FeatureRanks):
    """A rank that is a thread."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.world)
        object.__setattr__(self, "meeting", meeting)

    def all_gather(self, tensor: Tensor) -> Tensor:
        meeting: Meeting = self.meeting  # type: ignore[attr-defined]
        meeting.slots[self.rank] = tensor
        meeting.door.wait()
        gathered = torch.cat([meeting.slots[rank] for rank in range(self.world)])
        meeting.door.wait()
        return gathered

    def barrier(self) -> None:
        self.meeting.door.wait()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _one_derivative_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's forward mode belongs to the process; real ranks have one each."""
    lock, genuine = threading.Lock(), torch.func.jvp

    def locked(*args: Any) -> Any:
        with lock:
            return genuine(*args)

    monkeypatch.setattr(torch.func, "jvp", locked)


def on_ranks(world: int, work: Callable[[FeatureRanks, ModelParts], Any], parts: Callable[[], ModelParts]) -> list[Any]:
    """What each of `world` ranks returns, each with a model of its own."""
    meeting = Meeting(world)
    models = [parts() for _ in range(world)]
    with ThreadPoolExecutor(world) as pool:
        jobs = [pool.submit(work, ThreadRanks(rank, meeting), models[rank]) for rank in range(world)]
        return [job.result() for job in jobs]


def llama() -> ModelParts:
    return bind(tiny_model("llama", torch.float32), "llama")


def all_batches(settings: TrainingConfig) -> Callable[[FeatureRanks, ModelParts], list[ActivationBatch]]:
    return lambda ranks, parts: list(batches(open_stream(settings, parts, data_cases.tokenizer(), ranks)))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norms": {"data__max_norm_ratio": 1.2},
    "jacobian": {"sparsity__jacobian_weight": 0.1},
    "sae in bfloat16": {"dictionary__kind": "sae", "data__buffer_dtype": "bfloat16"},
    "fewer sequences than ranks": {"data__sequences_per_pass": 1},
    "cache": {"data__cache": "cache"},
}
TURNS = [(variant, (world + place) % 2 + 2) for place, variant in enumerate(VARIANTS) for world in range(2)]


@pytest.mark.few
@pytest.mark.parametrize(("variant", "world"), TURNS)
def test_ranks_see_what_one_sees(variant: str, world: int, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", texts(25))
    changes = dict(VARIANTS[variant])
    alone = all_batches(config(tmp_path, **{k: v for k, v in changes.items() if k != "data__cache"}))(
        FeatureRanks(), llama()
    )
    if "data__cache" in changes:
        changes["data__cache"] = tmp_path / "cache"
    together = on_ranks(world, all_batches(config(tmp_path, **changes)), llama)
    for found in together:
        assert len(found) == len(alone) > 5
        for one, other, first in zip(alone, found, together[0], strict=True):
            for expected, tensor, same in zip(tensors(one), tensors(other), tensors(first), strict=True):
                tolerance = 1e-5 if "bfloat16" not in variant else 1e-2
                torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=tolerance)
                assert torch.equal(tensor, same)


def test_a_resume_may_have_another_number_of_ranks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", texts(25))
    settings = config(tmp_path)
    source = open_stream(settings, llama(), data_cases.tokenizer(), FeatureRanks())
    for _ in range(4):
        source.next()
    state = json.loads(json.dumps(source.state()))
    expected = list(batches(source))

    def resumed(ranks: FeatureRanks, parts: ModelParts) -> list[ActivationBatch]:
        stream = open_stream(settings, parts, data_cases.tokenizer(), ranks)
        stream.restore(state)
        return list(batches(stream))

    for found in on_ranks(2, resumed, llama):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one.x_BSD, other.x_BSD, rtol=1e-5, atol=1e-5)


def test_all_ranks_stop_when_one_has_an_activation_that_is_not_finite(tmp_path: Path) -> None:
    """Only one sequence holds the token that breaks the model; every rank raises, so that none waits for another."""
    write_jsonl(tmp_path / "data.jsonl", ["a" * 200, "b" * 60 + "7" + "b" * 60, "a" * 200])

    def broken() -> ModelParts:
        parts = llama()
        parts.model.get_input_embeddings().weight[3 + data_cases.LETTERS.index("7")] = float("nan")
        return parts

    def work(ranks: FeatureRanks, parts: ModelParts) -> str:
        with pytest.raises(NumericalError) as caught:
            all_batches(config(tmp_path, data__context_length=32))(ranks, parts)
        return str(caught.value)

    messages = on_ranks(2, work, broken)
    assert messages[0] == messages[1]
    assert "of layer 0" in messages[0]


@pytest.mark.slow("two processes import the package anew")
def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", texts(25))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    script = "import sys, tests.training.test_data_ranks as t; t.process(sys.argv[1])"
    jobs = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env={**shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [job.wait(timeout=200) for job in jobs] == [0, 0]
    alone = all_batches(config(tmp_path, sparsity__jacobian_weight=0.1))(FeatureRanks(), llama())
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert torch.equal(found[0], found[1])
    expected = torch.stack([torch.stack(tensors(batch)) for batch in alone])
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def process(folder: str) -> None:
    """One rank of the test above."""
    torch.set_num_threads(1)
    ranks = FeatureRanks.from_environment(torch.device("cpu"))
    found = all_batches(config(Path(folder), sparsity__jacobian_weight=0.1))(ranks, llama())
    torch.save(torch.stack([torch.stack(tensors(batch)) for batch in found]), Path(folder) / f"rank{ranks.rank}.pt")
    torch.distributed.destroy_process_group()
