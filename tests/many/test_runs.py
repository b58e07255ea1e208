"""Runs over a file of prompts: what is traced, what is refused, and that no moment is a bad one to be interrupted."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL
from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError, ResourceError
from circuit_tracer.many import Row, Run, open_run
from circuit_tracer.many.runs import local, worker
from circuit_tracer.many.runs.claims import shard_claimed
from circuit_tracer.many.runs.local import run_locally
from circuit_tracer.many.runs.manifest import Manifest, open_manifest, portable
from circuit_tracer.many.runs.manifest import local as local_name
from circuit_tracer.many.runs.run import Progress, run
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.units import Units, shard_of
from circuit_tracer.many.runs.worker import UnitResult
from tests.support.command import Folders, save_folders
from tests.support.process_cases import alone
from tests.support.run_cases import Case, breaking_off, by_two, contents, die_at_once, killed, prompts, table
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def case(folders: Folders) -> Case:
    return Case(folders)


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in one go."""
    return case.run(tmp_path_factory.mktemp("runs") / "whole")


# ---- what comes out


def test_graphs_are_those_of_attribute(case: Case, whole: Run) -> None:
    model = ReplacementModel.from_pretrained(case.folders.model, case.folders.transcoder, device="cpu")
    asked: list[tuple[str, Any, Any]] = [
        ("row 0", "the capital of", None),
        ("ids/of tokens", [4, 5, 6, 7], [9, "Austin"]),
        ("chat", model.chat_tokens([{"role": "user", "content": "Texas is"}]), None),
    ]
    for id, prompt, targets in asked:
        there, here = whole.graph(id), attribute(prompt, model, attribution_targets=targets)
        assert there.input_string == here.input_string
        assert there.logit_targets == here.logit_targets
        assert torch.equal(there.selected_features, here.selected_features)
        largest = here.adjacency_matrix.abs().amax(1, keepdim=True)
        assert bool(((there.adjacency_matrix - here.adjacency_matrix).abs() <= 1e-5 * largest).all())


def test_rows_that_fail_are_rows(whole: Run) -> None:
    failed = {row["id"]: row for row in whole.table if row["status"] == "failed"}
    assert failed.keys() == {"unknown target", "empty"}
    assert "not one known token" in failed["unknown target"]["error"]
    assert "prompt has 1 token" in failed["empty"]["error"]
    assert {row["error_type"] for row in failed.values()} == {"InputError"}
    with pytest.raises(InputError, match="it is failed"):
        whole.graph("empty")
    with pytest.raises(InputError, match="has no row"):
        whole.graph("another")


def test_the_table_says_what_graphs_say(whole: Run) -> None:
    first = {row["id"]: row for row in whole.table}["row 0"]
    graph = whole.graph("row 0")
    logits = graph.provenance["prediction"]
    assert first["n_edges"] == len(graph.edges)
    assert first["residual"] == graph.residual
    assert first["targets"] == graph.targets.label
    assert first["target_weights"][0] == pytest.approx(first["top_probability"])
    assert len(logits["tokens"]) == 10
    assert whole.values("label") == {f"row {i}": str(i % 2) for i in range(10) if i not in (1, 2, 3, 4)}
    assert whole.values("note") == {"chat": [1, None]}
    assert whole.values("n_tokens")["ids/of tokens"] == 5
    with pytest.raises(InputError, match="no column 'notes'"):
        whole.values("notes")
    kept = parquet.read_table(f"{whole.address}/results.parquet").to_pylist()
    assert [{name: row[name] for name in first} for row in kept] == whole.table
    assert [row["note"] for row in kept if row["note"]] == ["[1, null]"]


def test_entropy_and_probabilities_are_those_of_the_logits(case: Case, whole: Run) -> None:
    model = ReplacementModel.from_pretrained(case.folders.model, case.folders.transcoder, device="cpu")
    graph = whole.graph("row 0")
    with torch.no_grad():
        p = torch.softmax(model.parts.model(graph.input_tokens[None]).logits[0, -1].double(), 0)
    said = graph.provenance["prediction"]
    assert said["entropy"] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
    assert said["probabilities"] == pytest.approx(p[said["token_ids"]].tolist(), rel=1e-4)
    assert said["token_ids"][0] == int(p.argmax())


def test_a_run_in_memory_has_the_same_files(case: Case, whole: Run) -> None:
    found = case.run("memory://runs/x")
    assert table(found) == table(whole)
    store = Store.at("memory://runs/x")
    assert {name: store.read(name) for name in contents(Path(whole.address))} == contents(Path(whole.address))
    assert torch.equal(found.graph("chat").adjacency_matrix, whole.graph("chat").adjacency_matrix)


# ---- going on


def test_what_is_finished_is_not_done_again(case: Case, whole: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.run(tmp_path, engine=breaking_off(2))
    before = open_run(tmp_path)
    assert [row["status"] for row in before.table].count("waiting") == 4
    assert parquet.read_table(tmp_path / "results.parquet").column("status").to_pylist().count("done") == 4
    written = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path)}
    seen: list[Progress] = []
    assert table(case.run(tmp_path, report=seen.append)) == table(whole)
    assert contents(tmp_path) == contents(Path(whole.address))
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in written} == written
    assert [(each.done, each.failed, each.total, each.now) for each in seen] == [
        (4, 2, 10, 0),
        (7, 2, 10, 3),
        (8, 2, 10, 4),
    ]
    assert seen[-1].seconds_left == 0


@pytest.mark.parametrize(
    "calls", [[1], [6], [9], pytest.param(None, marks=pytest.mark.slow("a process for every file that is written"))]
)
def test_killed_and_gone_on_with(calls: list[int] | None, case: Case, whole: Run, tmp_path: Path) -> None:
    """Right before a file is moved into its place: some of them, or (None) each of them."""
    kills = 0
    for each in calls or count():
        folder = tmp_path / str(each)
        ended = alone(killed, case, folder, each, folder=tmp_path)
        if calls is None and ended.code == 0:
            break  # fewer files are written
        assert ended.code == -signal.SIGKILL, ended
        kills += 1
        case.run(folder)
        assert contents(folder) == contents(Path(whole.address))
    assert kills >= (15 if calls is None else 1)


@pytest.mark.slow("takes 1.4 s")
def test_a_worker_that_is_killed_gives_its_unit_to_another(case: Case, whole: Run, tmp_path: Path) -> None:
    def engine(address: str, units: Any) -> Any:
        import multiprocessing

        before = set(multiprocessing.active_children())
        for number, result in enumerate(run_locally(address, units, workers=2)):
            if number == 0:
                others = [each for each in multiprocessing.active_children() if each not in before]
                assert len(others) == 2
                os.kill(others[0].pid or 0, signal.SIGKILL)
            yield result

    assert table(case.run(tmp_path, engine=engine)) == table(whole)
    assert contents(tmp_path) == contents(Path(whole.address))


@pytest.mark.slow("several processes that are killed with all they started")
def test_two_processes_killed_at_any_time(case: Case, whole: Run, tmp_path: Path) -> None:
    for number in range(6):
        alone(by_two, case, tmp_path / "x", folder=tmp_path, kill_after=0.4 + 0.3 * number)
    by_two(case, tmp_path / "x")
    assert contents(tmp_path / "x") == contents(Path(whole.address))


@pytest.mark.slow("takes 1.5 s")
def test_rows_added_later_are_the_only_new_work(case: Case, tmp_path: Path) -> None:
    first = case.run(tmp_path, prompts()[:4])
    seen: list[Progress] = []
    relabelled = [*prompts()[:4], Row("new", "Paris a the")]
    relabelled[0] = Row("row 0", "the capital of", label="another", extra={"n": 1})
    found = case.run(tmp_path, relabelled, report=seen.append)
    assert seen[-1].now == 1
    assert found.ids == ["row 0", "ids/of tokens", "new"]
    assert table(found)[1:4] == table(first)[1:4]
    assert (found.values("label"), found.values("n")) == ({"row 0": "another"}, {"row 0": 1})
    assert case.run(tmp_path, [Row("last", "a the")]).ids == ["row 0", "ids/of tokens", "new", "last"]
    with pytest.raises(InputError, match="rows 'new' with another prompt"):
        case.run(tmp_path, [Row("new", "Paris a")])
    with pytest.raises(InputError, match="have one id"):
        case.run(tmp_path, [Row("NEW", "Paris a")])


def test_lines_that_could_not_be_read_are_rows_until_they_can_be(case: Case, tmp_path: Path) -> None:
    bad = Row("line-2", "", problem="line 2 is not readable JSON")
    found = case.run(tmp_path, [Row("a", "the capital of"), bad], source="p.jsonl")
    assert [(row["status"], row["error_type"]) for row in found.table] == [
        ("done", None),
        ("failed", "FileFormatError"),
    ]
    found = case.run(tmp_path, [Row("a", "the capital of"), Row("b", "capital of")], source="p.jsonl")
    assert [(row["id"], row["status"]) for row in found.table] == [("a", "done"), ("b", "done")]


def test_failed_rows_are_tried_again_when_asked(case: Case, tmp_path: Path) -> None:
    seen: list[Progress] = []
    case.run(tmp_path, prompts()[:4])
    record = next((tmp_path / "units").iterdir())
    before, times = contents(tmp_path), record.stat().st_mtime_ns
    case.run(tmp_path, retry_failed=True, rows=[], report=seen.append)
    assert seen[-1].now == 3  # the unit with the two that fail; not the other one
    assert contents(tmp_path) == before
    assert times != (tmp_path / "units" / "0000-000000.json").stat().st_mtime_ns


def test_the_rate_leaves_out_the_time_in_which_the_model_is_opened(case: Case, tmp_path: Path) -> None:
    def slow_to_open(address: str, units: Sequence[str]) -> Iterator[UnitResult]:
        time.sleep(0.3)
        yield from (UnitResult(unit, done=3, failed=0, seconds=0.01) for unit in units)

    seen: list[Progress] = []
    case.run(tmp_path, engine=slow_to_open, report=seen.append)
    assert seen[0].rate is None
    assert 0.01 <= seen[1].seconds < 0.3


def test_a_graph_that_is_gone_or_damaged_is_traced_again(case: Case, whole: Run, tmp_path: Path) -> None:
    """Nobody else notices: the record says that it is done. A damaged one is for its reader to remove."""
    shutil.copytree(whole.address, tmp_path / "x")
    gone, bent = (tmp_path / "x" / "graphs" / f"{name}.safetensors" for name in ("row%200", "ids%2Fof%20tokens"))
    gone.unlink()
    bent.write_bytes(bent.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"no graph file at .* Run again"):
        open_run(tmp_path / "x").graph("row 0")
    with pytest.raises(FileFormatError, match=r"Or remove .*tokens\.safetensors, and run again"):
        open_run(tmp_path / "x").graph("ids/of tokens")
    bent.unlink()
    case.run(tmp_path / "x")
    assert contents(tmp_path / "x") == contents(Path(whole.address))


# ---- shards, and who may work


@pytest.mark.slow("takes 1.5 s")
def test_shards_do_each_a_share(case: Case, whole: Run, tmp_path: Path) -> None:
    found = case.run(tmp_path, shard=(1, 3))
    assert [row["status"] == "waiting" for row in found.table] == [True] * 3 + [False] * 3 + [True] * 4
    case.run(tmp_path, shard=(2, 3))
    assert table(case.run(tmp_path, shard=(0, 3))) == table(whole)
    assert contents(tmp_path) == contents(Path(whole.address))
    units = list(Units(Store.at(tmp_path)).rows_of)
    assert sorted(unit for number in range(3) for unit in shard_of(units, number, 3)) == units


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        ((0, 1), (0, 1), "another process .* works on shard 0/1"),
        ((1, 2), (0, 1), "another process .* works on shard 1/2"),
        ((1, 2), (0, 2), None),
        ((0, 1), (2, 2), "shard 2/2 does not exist"),
    ],
)
def test_one_process_works_on_a_row(
    mine: tuple[int, int], other: tuple[int, int], said: str | None, tmp_path: Path
) -> None:
    store = Store.at(tmp_path)
    refused = pytest.raises(InputError, match=said) if said else nullcontext()
    with shard_claimed(store, *mine), refused, shard_claimed(store, *other):
        pass
    with shard_claimed(store, 0, 5):
        pass  # when all have ended, anybody may


# ---- what is refused, and what cannot be written


def test_other_settings_are_refused(case: Case, whole: Run) -> None:
    for part, key, value in (("tracing", "max_n_logits", 3), ("layout", "unit_rows", 2), ("opening", "dtype", "bf16")):
        with pytest.raises(CompatibilityError, match=rf"other settings: {part}\.{key} is .* there and .* here"):
            run([], whole.address, {part: {key: value}})
    assert run([], whole.address, {"opening": {"dtype": "fp32"}, "means": {"memory": "8GB"}}).settings["means"][
        "memory"
    ] == ("8GB")
    with pytest.raises(FileFormatError, match="max_logits"):
        run([], whole.address, {"tracing": {"max_logits": 3}})


def test_settings_that_came_to_nothing_may_be_corrected(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a worker has opened model and dictionary; one that opened others meanwhile notices."""
    misspelt = {"opening": {"transcoders": str(tmp_path / "misspelt"), "model": case.folders.model}}
    with pytest.raises(InputError, match="misspelt"):
        run(prompts()[:1], tmp_path / "x", misspelt)
    opened = worker.open_model

    def opened_slowly(manifest: Manifest, device: str | None) -> ReplacementModel:
        open_manifest(Store.at(tmp_path / "x"), {"tracing": {"max_n_logits": 3}}, {})  # another shard is begun
        return opened(manifest, device)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(worker, "open_model", opened_slowly)
        with pytest.raises(CompatibilityError, match=r"other settings: tracing\.max_n_logits is 3 there and 10 here"):
            case.run(tmp_path / "x", prompts()[:1])
    assert run([], tmp_path / "x").ids == ["row 0"]


def test_folders_are_named_by_their_whole_path_and_hub_ids_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("clt", "gpt2", "a@b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "clt")
    assert [portable(name) for name in (".", "../clt", "../a@b")] == [
        str(tmp_path / each) for each in ("clt", "clt", "a@b")
    ]
    monkeypatch.chdir(tmp_path)
    assert portable("gpt2@main") == "gpt2@main"  # a folder that is called like the repository is another thing
    assert (portable(MODEL), local_name(portable(MODEL))) == ("circuit_tracer:demo/weights/model", MODEL)


def test_another_model_is_refused(case: Case, tmp_path: Path) -> None:
    folders = save_folders(tmp_path / "tiny")
    Case(folders).run(tmp_path / "x", prompts()[:1])
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folders.model)
    with pytest.raises(
        CompatibilityError, match=r"another model, dictionary or tokenizer: model is .* there and .* here"
    ):
        Case(folders).run(tmp_path / "x", prompts()[:5])
    assert open_run(tmp_path / "x").ids == ["row 0"]


def test_there_must_be_a_run_or_a_dictionary_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the transcoders"):
        run([Row("a", "b")], tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="there is no run at"):
        open_run(tmp_path / "y")


@pytest.mark.few
@pytest.mark.parametrize("name", ["manifest.json", "rows/0000.json", "units/0000-000000.json", "fingerprints.json"])
def test_damage_is_noticed(name: str, case: Case, whole: Run, tmp_path: Path) -> None:
    case.run(tmp_path, prompts()[:3])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data.replace(b'"', b"'", 1))
    with pytest.raises(FileFormatError, match="not readable JSON"):
        open_run(tmp_path)
    place = data.index(b": ") + 3
    (tmp_path / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(FileFormatError):
        open_run(tmp_path)


@pytest.mark.slow("takes 1.4 s")
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_loses_nothing(case: Case, whole: Run, tmp_path: Path) -> None:
    """Graphs are larger than files may be, records are not."""
    case.run(tmp_path, prompts()[:3])
    before, limit = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limit[1]))
    try:
        with pytest.raises(
            ResourceError, match=r"could not write .*graphs/.*\.safetensors(.|\n)* 3 of 10 rows are finished"
        ):
            case.run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    case.run(tmp_path)
    found = open_run(tmp_path)
    assert table(found) == table(whole)


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        (die_at_once, ResourceError, "opening the model ended 3 processes, the last one killed by signal 9"),
        (None, InputError, "there is no run at"),  # what a process says is said here
    ],
)
def test_processes_that_come_to_nothing_end_the_run(
    what: Any, error: type[Exception], said: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(address: str, units: Any) -> Any:
        pool = local._Pool(address if what else str(tmp_path / "elsewhere"), units, ["cpu"])
        pool.hire()
        yield from pool.results()

    if what:
        monkeypatch.setattr(local, "_serve", what)
    with pytest.raises(error, match=said):
        case.run(tmp_path, prompts()[:3], engine=engine)
