"""Checkpoints: everything comes back bitwise; what is broken, foreign or half-written is named and never read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import CompatibilityError, FileFormatError, NumericalError, ResourceError
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.digests import sealed
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.state import TrainingState
from tests.support.loop_cases import LAYERS, RUNS, Run, differences, tensors

resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX")

RUN = Run("skip", "jumprelu")


def trained(run: Run = RUN, steps: int = 3) -> TrainingState:
    """A state in which everything has moved from its start."""
    loop = run.loop(Path("unused"))
    for _ in range(steps):
        loop._step()
    return loop.state


def saved(folder: Path, state: TrainingState, **facts: Any) -> Checkpoint:
    return checkpoint.read(checkpoint.save(state, folder, facts, FeatureRanks()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.few
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_everything_comes_back_bitwise(run: Run, tmp_path: Path) -> None:
    state = trained(run)
    made = saved(tmp_path, state, data={"position": [1, 2]}, note="ü")
    assert made.step == 3
    assert made.content["data"] == {"position": [1, 2]}
    assert made.content["note"] == "ü"
    other = replace(run, seed=run.seed + 1).state()
    assert differences(tensors(other), tensors(state))
    checkpoint.load_(other, made)
    assert differences(tensors(other), tensors(state)) == []
    assert (other.step, other.running_cut) == (state.step, state.running_cut)


def test_nothing_of_a_state_is_left_out(tmp_path: Path) -> None:
    state = trained()
    held = [*state.adam.weights.values(), *state.adam.first.values(), *state.adam.second.values()]
    held += [*state.silence.tokens, *state.dictionary.norms, *state.normalisation.tensors().values()]
    written = tensors(state).values()
    assert {tensor.data_ptr() for tensor in held} == {tensor.data_ptr() for tensor in written}


def test_files_are_those_that_the_module_describes(tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    layers = [f"layer-{layer:03d}.rank-0-of-1.safetensors" for layer in range(LAYERS)]
    assert names(made.folder) == [*layers, "shared.safetensors", "state.json"]
    assert made.folder.name == "step-00000003"


def test_only_the_last_two_are_kept(tmp_path: Path) -> None:
    state = trained()
    for step in (1, 2, 5, 1000, 99_999_999):
        state.step = step
        saved(tmp_path, state)
    assert names(tmp_path) == ["step-00001000", "step-99999999"]
    last = checkpoint.latest(tmp_path)
    assert last is not None
    assert last.step == 99_999_999


def test_a_later_checkpoint_of_another_run_does_not_cost_the_new_one(tmp_path: Path) -> None:
    state = trained()
    for step in (50, 60, 1):
        state.step = step
        saved(tmp_path, state)
    assert names(tmp_path) == ["step-00000001", "step-00000050", "step-00000060"]


def test_a_folder_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "missing") is None


def test_half_written_folders_are_ignored_and_removed(tmp_path: Path) -> None:
    state = trained()
    saved(tmp_path, state)
    for step in (2, 4, 9):
        shutil.copytree(tmp_path / "step-00000003", tmp_path / f"step-{step:08d}.partial")
    (tmp_path / "step-notes").mkdir()
    last = checkpoint.latest(tmp_path)
    assert last is not None
    assert last.step == 3
    state.step = 4
    saved(tmp_path, state)
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-notes"]


def test_further_facts_join_those_that_are_there(tmp_path: Path) -> None:
    made = saved(tmp_path, trained(), one=1)
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir() if path.name != "state.json"}
    checkpoint.add_facts(made.folder, {"levels": [0.1, 1 / 3]}, FeatureRanks())
    again = checkpoint.read(made.folder)
    assert again.content == {**made.content, "levels": [0.1, 1 / 3]}
    assert {name: (made.folder / name).stat().st_mtime_ns for name in before} == before
    assert names(made.folder) == sorted([*before, "state.json"])


# ---- killed and refused while saving


class Killed(BaseException):
    """What no code catches, like a process that ends."""


@pytest.mark.few
@pytest.mark.parametrize("call", range(5))
def test_a_save_that_is_cut_short_leaves_the_last_one(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained()
    made = saved(tmp_path, state)
    before = tensors(trained())
    calls = iter(range(5))

    def dies(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            raise Killed

    # three layers, what is shared, and the move into place
    genuine_write, genuine_replace = checkpoint._write_tensors, os.replace
    monkeypatch.setattr(checkpoint, "_write_tensors", lambda *args: (dies(), genuine_write(*args)))
    monkeypatch.setattr(os, "replace", lambda *args: (dies(), genuine_replace(*args)))
    state.step = 7
    with pytest.raises(Killed):
        saved(tmp_path, state)
    monkeypatch.undo()
    last = checkpoint.latest(tmp_path)
    assert last == made
    other = RUN.state()
    checkpoint.load_(other, made)
    assert differences(tensors(other), before) == []
    assert saved(tmp_path, state).step == 7
    assert names(tmp_path) == ["step-00000003", "step-00000007"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let a file grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 3000], ids=lambda size: f"{size}bytes")
def test_a_system_that_refuses_to_write_is_a_resource_error(size: int, tmp_path: Path) -> None:
    state = trained()
    made = saved(tmp_path, state)
    content = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    state.step = 7
    with (
        files_of_at_most(size),
        pytest.raises(ResourceError, match=r"step-00000007.*earlier checkpoints are unchanged"),
    ):
        saved(tmp_path, state)
    assert names(tmp_path) == ["step-00000003"]
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == content


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["mkdir", "fsync", "replace", "write_text"])
def test_a_full_disk_is_a_resource_error_wherever_it_shows(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained()
    saved(tmp_path, state)
    monkeypatch.setattr(Path if place in ("mkdir", "write_text") else os, place, full)
    state.step = 7
    with pytest.raises(ResourceError, match="No space left on device"):
        saved(tmp_path, state)
    monkeypatch.undo()
    last = checkpoint.latest(tmp_path)
    assert last is not None
    assert last.step == 3


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    state = trained()
    saved(tmp_path, state)
    state.step = 7
    state.dictionary.W_dec[1][3, 2] = torch.inf
    with pytest.raises(NumericalError, match=r"W_dec of source layer 1 is not finite"):
        saved(tmp_path, state)
    assert names(tmp_path) == ["step-00000003"]


# ---- damaged and foreign


def truncate(path: Path) -> None:
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size // 2)


def scribble(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.few
@pytest.mark.parametrize("damage", [truncate, scribble, empty, os.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["layer-001.rank-0-of-1.safetensors", "shared.safetensors", "state.json"])
def test_damaged_files_are_file_format_errors(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    damage(made.folder / name)
    with pytest.raises(FileFormatError, match=r"step-00000003.*Remove the whole folder"):
        checkpoint.load_(RUN.state(), checkpoint.read(made.folder))


def test_a_shard_of_another_number_of_ranks_is_a_file_format_error(tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    shard = made.folder / "layer-000.rank-0-of-1.safetensors"
    shutil.copy(shard, made.folder / "layer-000.rank-1-of-2.safetensors")
    with pytest.raises(FileFormatError, match="source layer 0 are not those of all ranks"):
        checkpoint.load_(RUN.state(), made)
    shard.unlink()
    with pytest.raises(FileFormatError, match=r"layer-000\.rank-1-of-2"):
        checkpoint.load_(RUN.state(), made)


def test_rows_that_are_missing_are_a_file_format_error(tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    shard = made.folder / "layer-000.rank-0-of-1.safetensors"
    file = open_tensor_file(shard)
    write_tensors(shard, {name: file.read(name)[:-1] for name in file.entries}, file.metadata)
    with pytest.raises(FileFormatError, match=r"shape \(15,\), 16 rows are expected"):
        checkpoint.load_(RUN.state(), made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this program reads version 3"),
        ({"version": None}, "version None"),
        ({"step": ...}, "lacks step"),
        ({"running_cut": ...}, "lacks running_cut"),
    ],
    ids=str,
)
def test_another_version_is_a_file_format_error(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    content = {key: value for key, value in (made.content | change).items() if value is not ...}
    (made.folder / "state.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(FileFormatError, match=message):
        checkpoint.latest(tmp_path)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    (made.folder / "state.json").write_text("[1]")
    with pytest.raises(FileFormatError, match=r"version \[1\]"):
        checkpoint.read(made.folder)


FOREIGN = {
    "features": (replace(RUN, features=8), "3 layers of 16 features, this run 3 of 8"),
    "width": (replace(RUN, width=5), r"W_enc of source layer 0 is torch.float32 of shape \(16, 6\) in the checkpoint"),
    "no skip": (replace(RUN, kind="plt"), "differ in the tensors they have: W_skip, W_skip.m, W_skip.v"),
    "kind": (
        replace(RUN, kind="clt"),
        r"W_dec of source layer 0 .*\(16, 6\) in the checkpoint.*\(16, 18\) in this run",
    ),
    "activation": (replace(RUN, activation="topk"), "log_threshold, log_threshold.m, log_threshold.v"),
    "dtype": (replace(RUN, dtype="bfloat16"), "W_enc of source layer 0 is torch.float32 .* torch.bfloat16"),
    "jacobian": (replace(RUN, jacobian=True), "derivative_scale"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_checkpoint_of_another_run_is_a_compatibility_error(what: str, tmp_path: Path) -> None:
    other, message = FOREIGN[what]
    made = saved(tmp_path, trained())
    with pytest.raises(CompatibilityError, match=message):
        checkpoint.load_(other.state(), made)


def test_another_number_of_layers_is_a_compatibility_error(tmp_path: Path) -> None:
    made = saved(tmp_path, trained())
    fewer = Checkpoint(made.folder, made.content | {"n_layers": 2})
    with pytest.raises(CompatibilityError, match="has 2 layers of 16 features, this run 3 of 16"):
        checkpoint.load_(RUN.state(), fewer)
