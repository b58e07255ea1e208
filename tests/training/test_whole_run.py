"""The trainer as a whole: killed and resumed, and on several ranks, it writes the same dictionary."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils import deterministic

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.files import claimed
from circuit_tracer.training.run import checkpoint
from tests.support.loop_cases import numbers
from tests.support.process_cases import alone, results, together
from tests.support.train_cases import STEPS, Stopped, rank, stop, whole

VARIANTS: dict[str, dict[str, Any]] = {
    "clt": {},
    "skip with derivatives": {"dictionary__kind": "skip", "sparsity__jacobian_weight": 0.1},
    "sae in bfloat16": {"dictionary__kind": "sae", "dictionary__dtype": "bfloat16", "data__buffer_dtype": "bfloat16"},
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model and data of this machine need none, for planning, training and evaluation, also where it may be used."""
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address[-1])
        raise OSError(f"no network here, for {address}")

    connect = socket.socket.connect

    def within(self: socket.socket, address: object) -> None:
        """Processes of this machine find each other by files and on its own address."""
        own = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        connect(self, address) if self.family == socket.AF_UNIX or own else refuse(address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", within)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    assert not asked


def weights(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the exported dictionary."""
    return {
        f"{path.relative_to(out)}/{name}": tensor
        for path in sorted((out / "transcoder").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same_end(folder: Path) -> None:
    """`stopped` has come to the same dictionary and checkpoint as `whole`, bitwise."""
    one, other = weights(folder / "whole"), weights(folder / "stopped")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name
    contents = [checkpoint.latest(folder / out / "checkpoints") for out in ("whole", "stopped")]
    assert contents[0] is not None
    assert contents[1] is not None
    assert contents[0].content == contents[1].content


def test_a_baseline_that_is_not_there_is_missed_before_the_first_step(tmp_path: Path) -> None:
    changes = {"evaluation__per_layer_baseline": str(tmp_path / "nothing")}
    with pytest.raises(InputError, match="nothing"):
        whole(tmp_path, "run", changes)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is None
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda' cannot be used"):
        whole(tmp_path, "run", {"model__device": "cuda"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variant",
    [
        "clt",
        "skip with derivatives",
        pytest.param("sae in bfloat16", marks=pytest.mark.slow("a third variant of the same")),
    ],
)
def test_stopped_and_resumed_it_writes_bitwise_the_same_dictionary(variant: str, tmp_path: Path) -> None:
    changes = VARIANTS[variant]
    expected = [numbers(report) for report in whole(tmp_path, "whole", changes)]
    assert [report["step"] for report in expected] == list(range(1, STEPS + 1))
    # between the first checkpoint and the second; at the third, before it is written
    for resume, last in ((False, 5), (True, 9)):
        with pytest.raises(Stopped):
            whole(tmp_path, "stopped", changes, resume, last, stop)
    found = [numbers(report) for report in whole(tmp_path, "stopped", changes, True)]
    assert found == expected[6:]
    same_end(tmp_path)


def test_a_run_goes_on_only_with_what_it_began_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        whole(tmp_path, "run", {}, resume=True)
    with pytest.raises(Stopped):
        whole(tmp_path, "run", {}, False, 4, stop)
    with pytest.raises(InputError, match="holds a run at step 3"):
        whole(tmp_path, "run", {})
    with pytest.raises(CompatibilityError, match=r"other settings: run\.seed \(3 -> 4\)"):
        whole(tmp_path, "run", {"run__seed": 4}, resume=True)
    with claimed(tmp_path / "run", "trains in"), pytest.raises(InputError, match=r"another process .* trains in"):
        whole(tmp_path, "run", {}, resume=True)
    lines = (tmp_path / "data.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join(reversed(lines)))  # as long as before
    with pytest.raises(CompatibilityError, match="documents"):
        whole(tmp_path, "run", {}, resume=True)
    (tmp_path / "data.jsonl").write_text("".join(lines))
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file({name: tensor + 0.01 for name, tensor in content.items()}, path, metadata)
    with pytest.raises(CompatibilityError, match="trained on another model"):
        whole(tmp_path, "run", {}, resume=True)


@pytest.mark.slow("four whole runs, one of them killed twice")
def test_killed_and_resumed_it_writes_bitwise_the_same_dictionary(tmp_path: Path) -> None:
    whole(tmp_path, "whole", {})

    def kept() -> bool:
        """A checkpoint that is written beside the steps may be late."""
        return checkpoint.latest(tmp_path / "stopped" / "checkpoints") is not None

    for last in (2, 5, 9):
        ended = alone(whole, tmp_path, "stopped", {}, kept(), last, folder=tmp_path)
        assert ended.code == -signal.SIGKILL, ended.error
    assert kept()
    ended = alone(whole, tmp_path, "stopped", {}, True, folder=tmp_path)
    assert ended.error is None
    same_end(tmp_path)


@pytest.mark.slow("whole runs by two and by four processes")
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_write_the_dictionary_of_one(world: int, tmp_path: Path) -> None:
    changes = {"evaluation__replacement_tokens": 64}
    expected = whole(tmp_path, "alone", changes)
    found = results(together(world, rank, tmp_path, "ranks", changes, False, folder=tmp_path, limit=200))
    assert [len(reports) for reports in found] == [STEPS, *([0] * (world - 1))]  # the first one reports
    for mine, report in zip(found[0], expected, strict=True):
        assert mine.loss == pytest.approx(report.loss, rel=1e-4)
        assert mine.l0_S == pytest.approx(report.l0_S, abs=0.2)
    kept, also = (
        json.loads((tmp_path / out / "transcoder" / "evaluation.json").read_text())["conditions"]["export"]
        for out in ("alone", "ranks")
    )
    assert also["tokens"] == kept["tokens"]
    for side in ("trained", "exported"):
        assert also[side] == pytest.approx(kept[side], rel=0.02)
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "ranks")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if "threshold" not in name:  # between two scores of a few tokens
            torch.testing.assert_close(
                other[name], tensor, rtol=2e-2, atol=2e-2, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_arrays_without_values_are_not_filled_while_training(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory))  # type: ignore[attr-defined]
        stop()

    with pytest.raises(Stopped):
        whole(tmp_path, "run", {}, last=1, end=look)
    assert seen == [(True, False)]
    assert deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not [one for one in threading.enumerate() if one.name == "ahead"]
