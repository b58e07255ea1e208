"""The folder of a run, wherever it lies: files are there whole or not at all, and nothing leads out of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError
from circuit_tracer.files.places import open_system
from circuit_tracer.many.runs.store import Store

# One on this machine, one that appears whole, one that is written elsewhere and moved.
ADDRESSES: dict[str, Callable[[Path], str | Path]] = {
    "folder": lambda tmp: tmp / "run",
    "file": lambda tmp: f"file://{tmp}/run",
    "memory": lambda tmp: f"memory://{tmp.name}/run/",
    "moved": lambda tmp: f"dir://run::file://{tmp}",
}


@pytest.fixture(params=ADDRESSES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.at(ADDRESSES[request.param](tmp_path))


def test_files_are_written_over_read_and_listed(store: Store) -> None:
    assert store.names() == []
    assert store.names("units/") == []
    assert not store.exists("units/a")
    with pytest.raises(InputError, match=r"no such file: .*units/a"):
        store.read("units/a")
    for name, data in {
        "units/b": b"old",
        "units/a": b"",
        "units/deep/c": b"x",
        "graphs/g": b"g",
        "units.txt": b"t",
    }.items():
        store.write(name, data)
    store.write("units/b", b"new")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read("units/b") == b"new"
    assert again.exists("units/a")
    assert not again.exists("units")
    assert again.names("units/") == ["units/a", "units/b", "units/deep/c"]
    assert again.names("units/d") == ["units/deep/c"]
    assert again.names("unit") == ["units.txt", "units/a", "units/b", "units/deep/c"]
    assert len(again.names()) == 5


def test_a_path_of_this_machine_holds_a_file_and_becomes_one(store: Store) -> None:
    with store.writing("graphs/g.graph") as path:
        path.write_bytes(b"whole")
    with pytest.raises(ZeroDivisionError), store.writing("graphs/g.graph") as path:
        path.write_bytes(b"half") and 1 / 0
    with store.local("graphs/g.graph") as path:
        assert path.name == "g.graph"
        assert path.read_bytes() == b"whole"
    assert store.names() == ["graphs/g.graph"]


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "a\\b", "a\0"])
def test_no_name_leads_out(store: Store, name: str) -> None:
    for use in (store.read, store.exists, store.names, store.where, lambda name: store.write(name, b"")):
        with pytest.raises(InputError, match="leads out of its folder"):
            use(name)


@pytest.mark.parametrize("kind", ["memory", "moved"])
def test_what_another_wrote_is_seen_at_once(kind: str, tmp_path: Path) -> None:
    store = Store.at(ADDRESSES[kind](tmp_path))
    store.write("units/a", b"a")
    assert store.names("units/") == ["units/a"]
    system, root = open_system(store.address)
    system.pipe_file(f"{root.rstrip('/')}/units/b", b"b")
    assert store.names("units/") == ["units/a", "units/b"]
    assert store.exists("units/b")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), FileNotFoundError("no such bucket")], ids=lambda error: str(error)
)
def test_a_write_that_breaks_off_changes_nothing(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(ADDRESSES["moved"](tmp_path))
    store.write("units/a", b"old")
    system = type(store._system)
    whole = system.pipe_file

    def full(self: Any, path: str, data: bytes) -> None:
        whole(self, path, data[:1])
        raise error

    monkeypatch.setattr(system, "pipe_file", full)
    with pytest.raises(
        ResourceError,
        match=r"could not write dir://run.*/units/a: (.*No space left|no such bucket).*what is finished is kept",
    ):
        store.write("units/a", b"new")
    assert store.read("units/a") == b"old"
    assert [file.name for file in (tmp_path / "run").rglob("*") if file.is_file()] == ["a"]


def test_addresses_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CircuitTracerError, match="nowhere://x cannot be opened"):
        Store.at("nowhere://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into the folder"):
        Store.at(tmp_path / "file").write("units/a", b"")
