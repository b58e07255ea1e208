"""A file is what it was or new and whole; what killed processes left is cleared; processes that write one thing take turns."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.files import atomic_write, claimed, locked, require_writable_file, require_writable_folder
from circuit_tracer.files.writing import temporary_path
from circuit_tracer.graph.files.graph_index import add_to_index, read_index
from tests.support.process_cases import CONTEXT, alone, die

PROCESSES, ENTRIES = 6, 15


def die_while_writing(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        die()


@pytest.mark.slow("takes 5.3 s")
def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert alone(die_while_writing, path, folder=tmp_path).code == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".file.*.part"))) == 1
    mine = temporary_path(tmp_path / "another")
    mine.touch()
    elsewhere = tmp_path / ".file.00000000-1.01234567.part"  # of another machine
    elsewhere.touch()
    require_writable_folder(tmp_path)
    assert sorted(tmp_path.glob(".*.part")) == sorted([mine, elsewhere])
    os.utime(elsewhere, (0, time.time() - 10**6))
    require_writable_folder(tmp_path)
    assert list(tmp_path.glob(".*.part")) == [mine]


def write_too_much(path: Path, kind: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with atomic_write(path) as temporary:
        if kind == "text":
            temporary.write_text("x" * 10**6)
        else:
            import torch
            from safetensors.torch import save_file

            save_file({"x": torch.zeros(10**5)}, temporary)


@pytest.mark.slow("takes 3 s")
@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_no_room_is_a_typed_error_and_the_old_file_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    ended = alone(write_too_much, path, kind, folder=tmp_path)
    assert isinstance(ended.error, ResourceError)
    assert "Free some space" in str(ended.error)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder"):
        require_writable_file(tmp_path)
    for path in (tmp_path / "file" / "x", tmp_path / "file"):
        with pytest.raises(InputError, match="cannot write into the folder"):
            require_writable_folder(path)


def add_entries(folder: Path, number: int) -> None:
    for entry in range(ENTRIES):
        add_to_index(folder, {"slug": f"{number}-{entry}"})


def count_up(folder: Path, number: int) -> None:
    for _ in range(ENTRIES):
        with locked(folder), locked(folder):  # a thread may ask again for what it has
            path = folder / "count"
            found = json.loads(path.read_text()) if path.exists() else 0
            path.write_text(json.dumps(found + 1))


@pytest.mark.parametrize("work", [add_entries, count_up])
def test_several_processes_lose_nothing(tmp_path: Path, work: object) -> None:
    running = [CONTEXT.Process(target=work, args=(tmp_path, number)) for number in range(PROCESSES)]
    for each in running:
        each.start()
    for each in running:
        each.join()
        assert each.exitcode == 0
    if work is count_up:
        assert json.loads((tmp_path / "count").read_text()) == PROCESSES * ENTRIES
    else:
        wanted = {f"{number}-{entry}" for number in range(PROCESSES) for entry in range(ENTRIES)}
        assert {each["slug"] for each in read_index(tmp_path)} == wanted


def claim_and_die(folder: Path) -> None:
    with claimed(folder, "works in"):
        die()


def test_a_claim_is_refused_to_others_and_free_once_its_process_is_dead(tmp_path: Path) -> None:
    assert alone(claim_and_die, tmp_path, folder=tmp_path).code == -signal.SIGKILL
    with (
        claimed(tmp_path, "works in"),
        pytest.raises(InputError, match=f"another process .{os.getpid()} on .* works in"),
        claimed(tmp_path, "works in"),
    ):
        pass
    with claimed(tmp_path, "works in"):
        pass
