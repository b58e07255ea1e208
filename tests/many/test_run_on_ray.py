"""Runs on a Ray cluster: two nodes, a worker killed, a node stopped, interrupted and gone on with; the files are the same."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
from circuit_tracer.errors import CompatibilityError, InputError, ResourceError
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.manifest import FINGERPRINTS, MANIFEST, Manifest
from circuit_tracer.many.runs.on_ray import _Needs, run_on_ray
from circuit_tracer.many.runs.run import Progress, run
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.worker import UnitResult

SLOW = pytest.mark.slow("starts a Ray cluster of two nodes, whose workers load torch")
STORE_BYTES = 100 * 2**20
TIMES = ("times/", "results.parquet")  # what differs from one time to the next
ASKED = {"opening": {"transcoders": TRANSCODER, "model": MODEL}, "layout": {"unit_rows": 2, "threads": 1}}

Chaos = Callable[[int], None]


def rows(count: int) -> list[Row]:
    states = ("Dallas", "Oakland", "Seattle", "Miami")
    return [Row(f"row {n}", PROMPT.replace("Dallas", states[n % 4]) + " the" * (n % 3)) for n in range(count)]


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A cluster of one node, with room for one worker."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token would be written to the home folder
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run of 24 rows, made by this process without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    made = run(rows(24), folder, ASKED)
    assert len(made.ids) == 24
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    store = Store.at(folder)
    return {name: store.read(name) for name in store.names() if not name.startswith(TIMES)}


def actors_of(node: Any) -> list[psutil.Process]:
    """Processes of workers that are at work on a node."""
    raylet = node.all_processes["raylet"][0].process.pid
    below = psutil.Process(raylet).children(recursive=True)
    return [process for process in below if any("Actor" in part for part in process.cmdline())]


def disturbed(chaos: Chaos, ends: dict[str, int], cluster: str) -> Callable[[str, Sequence[str]], Iterator[UnitResult]]:
    """The engine, with something happening after each unit; ends: the file (inode) of each record as it was reported."""

    def engine(address: str, units: Sequence[str]) -> Iterator[UnitResult]:
        for number, result in enumerate(run_on_ray(address, units, cluster=cluster)):
            assert result.unit not in ends
            ends[result.unit] = os.stat(Path(address) / "units" / f"{result.unit}.json").st_ino
            chaos(number)
            yield result

    return engine


@SLOW
def test_killed_stopped_and_interrupted_it_makes_the_same_files(
    head: Any, whole: dict[str, bytes], tmp_path: Path
) -> None:
    second = head.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ends: dict[str, int] = {}
    lost = []

    def chaos(number: int) -> None:
        if number == 1:
            lost.extend(actors_of(head.head_node))
            lost[0].kill()
        if number == 4:
            lost.extend(actors_of(second))
            head.remove_node(second, allow_graceful=False)

    def interrupt(progress: Progress) -> None:
        if progress.done >= 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(rows(24), tmp_path, ASKED, engine=disturbed(chaos, ends, head.address), report=interrupt)
    assert len(lost) == 2
    assert not any(process.is_running() for process in lost)
    made = run(rows(24), tmp_path, ASKED, engine=disturbed(lambda _: None, ends, head.address))
    assert len(made.ids) == 24
    assert files(tmp_path) == whole
    assert len(ends) == 12
    for unit, inode in ends.items():  # nothing that was finished was written again
        assert os.stat(tmp_path / "units" / f"{unit}.json").st_ino == inode


@SLOW
def test_results_go_to_an_address(head: Any, whole: dict[str, bytes], tmp_path: Path) -> None:
    run(rows(24), f"dir://run::file://{tmp_path}", ASKED, engine=partial(run_on_ray, cluster=head.address))
    assert files(tmp_path / "run") == whole


@SLOW
def test_what_a_worker_raises_is_raised_here(head: Any, tmp_path: Path) -> None:
    run(rows(2), tmp_path, ASKED)
    fingerprints = Store.at(tmp_path).read(FINGERPRINTS)
    Store.at(tmp_path).write(FINGERPRINTS, fingerprints.replace(b'"', b'"other ', 1))
    with pytest.raises(CompatibilityError, match="another model, dictionary or tokenizer"):
        run(rows(4), tmp_path, ASKED, engine=partial(run_on_ray, cluster=head.address))


@SLOW
def test_workers_that_all_die_are_given_up(head: Any, tmp_path: Path) -> None:
    run(rows(2), tmp_path, ASKED)
    ended = threading.Event()

    def kill_all() -> None:
        while not ended.wait(0.05):
            for process in actors_of(head.head_node):
                process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(
            ResourceError, match=r"opening the model cost 3 workers on Ray\. Of the last one Ray says: .*kept\."
        ):
            run(rows(4), tmp_path, ASKED, engine=partial(run_on_ray, cluster=head.address))
    finally:
        ended.set()
        killer.join()


@pytest.mark.parametrize(
    ("needs", "resources", "expected"),
    [
        (_Needs(2, 0), {"CPU": 7.0}, 3),
        (_Needs(2, 0.5), {"CPU": 7.0, "GPU": 1.0}, 2),
        (_Needs(0, 1), {"GPU": 8.0}, 8),
        (_Needs(1, 1), {"CPU": 4.0}, 1),  # it waits
        (_Needs(0, 0), {}, 1),
    ],
)
def test_there_are_as_many_workers_as_find_room(needs: _Needs, resources: dict[str, float], expected: int) -> None:
    assert needs.room(resources) == expected


def test_without_ray_or_a_cluster_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no run at"):
        list(run_on_ray(tmp_path, ["a"]))
    Store.at(tmp_path).write(MANIFEST, Manifest.model_validate(ASKED).model_dump_json().encode())
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused.*ray start --head"):
        list(run_on_ray(tmp_path, ["a"], cluster="127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"runs on Ray need the package 'ray': pip install 'circuit-tracing\[ray\]'"):
        list(run_on_ray(tmp_path, ["a"]))
