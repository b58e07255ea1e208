"""Tuning: what is tried, what is kept on disk, and what a broken or absent file does. No kernel runs: times are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed here")

from triton.runtime.errors import OutOfResources

from circuit_tracer.kernels import tuning
from circuit_tracer.kernels.tuning import Tuned


class Kernel:
    """Looks like what `triton.jit` makes: does to `out` what its configuration says, and spills if that says so."""

    __name__, cache_key, arg_names = "_kernel", "source", ["out", "n_rows", "width"]

    def __init__(self) -> None:
        self.launched: list[int] = []

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(out: torch.Tensor, n_rows: int, width: int, BLOCK: int, SPILLS: int = 0, **options: Any) -> Any:
            if BLOCK > 1024:
                raise OutOfResources(BLOCK, 1024, "shared memory")
            self.launched.append(BLOCK)
            out += 1
            return type("Compiled", (), {"n_spills": SPILLS})()

        return launch


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Blocks in the order in which they were timed; larger ones are faster. An H200 in name only."""
    order: list[int] = []

    def bench(launch: Any) -> float:
        launch()
        order.append(launch.args[0].kwargs["BLOCK"])
        return 1 / order[-1]

    monkeypatch.setattr(tuning, "bench", bench)
    monkeypatch.setattr(tuning, "gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("CIRCUIT_TRACER_CACHE_DIR", str(tmp_path / "cache"))
    return order


def tuned(*blocks: int, spills: int = 0, **more: Any) -> Tuned:
    configs = [triton.Config({"BLOCK": block, "SPILLS": int(block == spills)}) for block in blocks]
    return Tuned(Kernel(), configs, key=["width"], sizes=["n_rows"], **more)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tuned").glob("*.json"))


def test_the_fastest_is_launched_and_the_next_process_knows_it(timed: list[int], tmp_path: Path) -> None:
    out = torch.zeros(2)
    first = tuned(16, 64, 32)
    first[(1,)](out, 100, 8)
    first[(1,)](out, 101, 8)  # the same kind
    assert timed == [16, 64, 32] and first.fn.launched[-2:] == [64, 64]
    [record] = kept(tmp_path)
    assert json.loads(record.read_text())["number"] == 1
    second = tuned(16, 64, 32)
    second[(1,)](out, 100, 8)
    assert len(timed) == 3 and second.fn.launched == [64]
    assert not [path for path in record.parent.iterdir() if path != record]


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"number": 3}', b'{"number": true}', b'{"number": "1"}', b"\xff"])
def test_a_broken_file_is_as_good_as_none(broken: bytes, timed: list[int], tmp_path: Path) -> None:
    tuned(16, 64, 32)[(1,)](torch.zeros(2), 100, 8)
    [record] = kept(tmp_path)
    record.write_bytes(broken)
    again = tuned(16, 64, 32)
    again[(1,)](torch.zeros(2), 100, 8)
    assert len(timed) == 6 and again.fn.launched[-1] == 64
    assert json.loads(record.read_text())["number"] == 1


def test_what_a_choice_depends_on_has_a_file_of_its_own(timed: list[int], tmp_path: Path, monkeypatch: Any) -> None:
    out = torch.zeros(2)
    tuned(16, 64)[(1,)](out, 100, 8)
    tuned(16, 64)[(1,)](out, 100, 9)  # another width
    tuned(16, 64)[(1,)](out, 5000, 8)  # a larger kind
    tuned(16, 64)[(1,)](out.double(), 100, 8)
    tuned(16, 32)[(1,)](out, 100, 8)
    monkeypatch.setattr(tuning, "gpu", lambda: "NVIDIA B200")
    tuned(16, 64)[(1,)](out, 100, 8)
    monkeypatch.setattr(triton, "__version__", "0")
    tuned(16, 64)[(1,)](out, 100, 8)
    monkeypatch.setattr(Kernel, "cache_key", "changed")
    tuned(16, 64)[(1,)](out, 100, 8)
    assert len(kept(tmp_path)) == 8 and len(timed) == 16


def test_what_has_no_room_or_spills_is_left_out(timed: list[int]) -> None:
    some = tuned(16, 2048, 64, 32, spills=64)
    some[(1,)](torch.zeros(2), 100, 8)
    assert timed == [16, 32] and some.fn.launched[-1] == 32
    only = tuned(64, 2048, spills=64)
    only[(1,)](torch.zeros(2), 100, 8)
    assert only.fn.launched[-1] == 64
    with pytest.raises(OutOfResources):
        tuned(2048, 4096)[(1,)](torch.zeros(2), 100, 8)


def test_trials_leave_no_trace_in_what_is_added_to(timed: list[int]) -> None:
    out = torch.zeros(2)
    tuned(16, 64, 32, adds_to=["out"])[(1,)](out, 100, 8)
    assert out.tolist() == [1, 1]
    counted = torch.full((2,), 9.0)
    tuned(16, 32, counts_in=["out"])[(1,)](counted, 100, 8)
    assert counted.tolist() == [1, 1]


def test_no_folder_costs_time_only(
    timed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIRCUIT_TRACER_CACHE_DIR", str(tmp_path / "file"))
    one = tuned(16, 64)
    one[(1,)](torch.zeros(2), 100, 8)
    assert one.fn.launched[-1] == 64 and "cannot keep" in caplog.text


def test_nothing_is_timed_while_a_graph_is_captured(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    one = tuned(16, 64)
    one[(1,)](torch.zeros(2), 100, 8)
    assert not timed and one.fn.launched == [16]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    one[(1,)](torch.zeros(2), 100, 8)
    assert timed == [16, 64]


def test_trials_are_bounded() -> None:
    """Few configurations, and few kinds of sizes: rows of a trace, 1 to 2,000, are two."""
    with pytest.raises(ValueError, match="6 configurations"):
        tuned(*[16] * 6)
    assert {tuning.kind(size) for size in range(1, 2001)} == {2, 3}
    assert tuning.kind(64) == tuning.kind(1) != tuning.kind(257)
