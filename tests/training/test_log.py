"""Logs that survive kills and resumes, optional logs that are asked for in vain, and what a person sees."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from circuit_tracer.errors import FileFormatError, InputError, ResourceError
from circuit_tracer.files.digests import sealed, unsealed
from circuit_tracer.training.run import log as logs
from circuit_tracer.training.run.events import Listener, NullListener, StepReport
from circuit_tracer.training.run.log import JsonLog, RunLog, TensorBoardLog, numbers, scalars
from circuit_tracer.training.run.progress import ProgressDisplay, describe
from tests.support.config_cases import small


def report(step: int, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step, "steps": 100, "tokens": 64 * step, "loss": 1 / 3 + step, "nmse_S": [0.5, 0.25], "l0_S": [8.0, 9.0],
        "dead_S": [0.0, 0.5], "learning_rate": 1e-4, "active": 8.5, "tokens_per_second": 1234.5, "seconds_left": 4000.0,
        "cut": 0.25, "terms": {"reconstruction": 0.375}, "skipped": 0,
    }  # fmt: skip
    return StepReport(**{**values, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [unsealed(json.loads(line), "a line", "") for line in path.read_text().splitlines()]


def record(log: Listener, steps: range) -> None:
    for step in steps:
        log.progress(report(step))
        if step % 4 == 0:
            log.evaluated({"nmse": {"layers": [0.1, 0.2]}, "at": step})


def test_every_report_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    with JsonLog(path) as log:
        log.progress(report(10))
        assert lines(path) == [vars(report(10))]
        log.message("not for the log")
        log.evaluated({"kl": 0.5})
        assert lines(path)[1:] == [{"step": 10, "evaluation": {"kl": 0.5}}]
    with JsonLog(path) as log:  # a new run in the same folder
        assert lines(path) == []


def test_what_json_cannot_hold_becomes_null(tmp_path: Path) -> None:
    with JsonLog(tmp_path / "log.jsonl") as log:
        log.progress(report(1, loss=float("nan"), nmse_S=[float("inf"), 1.0], cut=None))
    (entry,) = lines(tmp_path / "log.jsonl")
    assert (entry["loss"], entry["nmse_S"], entry["cut"]) == (None, [None, 1.0], None)


@given(killed=st.integers(1, 19), saved=st.integers(0, 19), cut_off=st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_a_resumed_log_is_that_of_an_uninterrupted_run(
    killed: int, saved: int, cut_off: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    saved, folder = min(saved, killed), tmp_path_factory.mktemp("log")
    with JsonLog(folder / "whole.jsonl") as log:
        record(log, range(1, 20))
    with JsonLog(folder / "log.jsonl") as log:
        record(log, range(1, killed + 1))
    # killed in the middle of a line beyond the checkpoint
    text = (folder / "log.jsonl").read_bytes()
    kept = sum(len(line) + 1 for line in text.splitlines() if json.loads(line)["step"] <= saved)
    (folder / "log.jsonl").write_bytes(text[: max(kept, len(text) - cut_off)])
    with JsonLog(folder / "log.jsonl", saved) as log:
        record(log, range(saved + 1, 20))
    assert (folder / "log.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_an_evaluation_after_a_resume_stands_under_the_step_resumed_from(tmp_path: Path) -> None:
    with JsonLog(tmp_path / "log.jsonl", 30) as log:
        log.evaluated({"kl": 1.0})
    assert lines(tmp_path / "log.jsonl") == [{"step": 30, "evaluation": {"kl": 1.0}}]


@pytest.mark.parametrize("damage", ["{", "3", '{"loss": 1}', '{"step": "1"}', "\x00\x00"])
def test_a_log_damaged_before_its_end_is_not_written_over(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.jsonl"
    first, last = (json.dumps(sealed({"step": step})) for step in (1, 3))
    path.write_text(f"{first}\n{damage}\n{last}\n")
    with pytest.raises(FileFormatError, match=r"line 2 of .*log\.jsonl is not an entry"):
        JsonLog(path, 2)
    assert path.read_text().count("\n") == 3


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    with JsonLog(tmp_path / "log.jsonl") as log:
        monkeypatch.setattr(log, "_file", SimpleNamespace(write=full, close=lambda: None))
        with pytest.raises(ResourceError, match=r"log\.jsonl: No space left on device\. Free some space and resume"):
            log.progress(report(1))


def test_numbers_have_names() -> None:
    named = scalars(report(3))
    assert named["nmse/mean"] == 0.375
    assert (named["l0/layer_00"], named["l0/layer_01"], named["dead/layer_01"]) == (8.0, 9.0, 0.5)
    assert named["loss/reconstruction"] == 0.375
    assert {"active", "cut"} <= set(named)
    assert not {"active", "cut"} & set(scalars(report(3, active=0.0, cut=None)))
    found = dict(numbers({"a": [1, {"b": 2.5}], "c": True, "d": "text", "e": None}, "evaluation"))
    assert found == {"evaluation/a/00": 1.0, "evaluation/a/01/b": 2.5}


@pytest.mark.parametrize(
    ("key", "value", "package"), [("tensorboard", True, "tensorboard"), ("wandb", "project", "wandb")]
)
def test_a_missing_extra_is_named_before_anything_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, package: str
) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    config = small(**{f"run__{key}": value, "run__out": str(tmp_path / "run")})
    with pytest.raises(InputError, match=rf"run\.{key} needs the package {package}.*circuit-tracing\[{package}\]"):
        RunLog(config)
    assert not (tmp_path / "run").exists()


class FakeWandb(ModuleType):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Any:
        self.begun.append(settings)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1


def test_a_run_of_weights_and_biases_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(logs, "find_spec", lambda name: object())
    config = small(run__wandb="atlas", run__out=str(tmp_path))
    for step in (0, 5, 0):
        with RunLog(config, step) as log:
            record(log, range(step + 3, step + 5))
    ids = [begun["id"] for begun in wandb.begun]
    assert ids[0] == ids[1] != ids[2]
    assert {(begun["project"], begun["resume"], begun["dir"]) for begun in wandb.begun} == {
        ("atlas", "allow", str(tmp_path))
    }
    assert wandb.begun[0]["config"]["run"]["wandb"] == "atlas"
    assert [step for step, _ in wandb.logged] == [3, 4, 4, 8, 8, 9, 3, 4, 4]
    assert wandb.logged[0][1]["nmse/mean"] == 0.375
    assert wandb.logged[2] == (
        4,
        {"evaluation/nmse/layers/00": 0.1, "evaluation/nmse/layers/01": 0.2, "evaluation/at": 4.0},
    )
    assert wandb.finished == 3


def _fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            calls.append(("open", folder, purge_step))

        def add_scalar(self, *arguments: Any) -> None:
            calls.append(arguments)

        def flush(self) -> None:
            pass

        def close(self) -> None:
            calls.append(("close",))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    return calls


def test_tensorboard_forgets_what_a_resume_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_tensorboard(monkeypatch)
    old = tmp_path / "events.out.tfevents.1"
    old.touch()
    with TensorBoardLog(tmp_path, 40) as log:
        log.progress(report(50))
        log.evaluated({"kl": 0.5})
    assert calls[0] == ("open", str(tmp_path), 41)
    assert ("nmse/layer_01", 0.25, 50) in calls
    assert ("evaluation/kl", 0.5, 50) in calls
    assert calls[-1] == ("close",)
    assert old.exists()
    with TensorBoardLog(tmp_path):
        assert not old.exists(), "a new run does not mix with an old one"


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step in (0, 6):
        with TensorBoardLog(tmp_path, step) as log:
            record(log, range(step + 1, 10))
    events = accumulators.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))


def shown(work: Callable[[ProgressDisplay], None], terminal: bool, seconds: float = 0.0) -> str:
    output = io.StringIO()
    with ProgressDisplay(Console(file=output, force_terminal=terminal, width=160), seconds) as display:
        work(display)
    return output.getvalue()


def test_progress_in_words() -> None:
    start, end = "loss 3.333  NMSE 0.375  lr 1.0e-04  active 17.0  dead 25.0 %  ", "1,234 tokens/s  67 min left"
    assert describe(report(3)) == start + end
    assert describe(report(3, skipped=2)) == start + "2 skipped  " + end


def test_lines_without_a_terminal_keep_their_distance() -> None:
    def work(display: ProgressDisplay) -> None:
        for step in range(10, 101, 10):
            display.progress(report(step))

    said = shown(work, terminal=False, seconds=1000).splitlines()
    assert [line.split()[1] for line in said] == ["10/100", "100/100"]
    assert len(shown(work, terminal=False).splitlines()) == 10


def test_a_terminal_gets_a_bar_and_messages() -> None:
    def work(display: ProgressDisplay) -> None:
        display.progress(report(10))
        display.message("wrote [bold]file[/bold]")
        display.evaluated({})
        display.progress(report(100))

    said = shown(work, terminal=True)
    assert "wrote [bold]file[/bold]" in said
    assert "100/100" in said
    assert "NMSE 0.375" in said


def test_a_message_is_one_line_however_long() -> None:
    assert shown(lambda display: display.message("word " * 100), terminal=False).count("\n") == 1


def test_nobody_need_listen() -> None:
    listener: Listener = NullListener()
    record(listener, range(5))
    listener.message("")
