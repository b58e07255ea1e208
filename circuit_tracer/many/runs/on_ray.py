"""A run on a Ray cluster: Ray finds places for actors that hold a model each, starts them, and tells of those that are lost.

The work is that of `local.py`: whoever computes a unit writes the same files. So the unit of an actor that is lost is given to
the next one, and it does no harm if the lost one finishes it after all.
"""

from __future__ import annotations

import gc
import logging
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError, first_line, warn
from circuit_tracer.extras import missing_extra
from circuit_tracer.many.runs.local import MOST_DEATHS
from circuit_tracer.many.runs.manifest import read_manifest
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.worker import UnitResult, Worker

PATIENCE = 60.0  # seconds without any actor, after which it is said what is waited for
REACHED_WITHIN = 10.0  # seconds; Ray itself tries for minutes


class Actor:
    """A worker in a process of the cluster. Opening the run is a call of its own, whose errors Ray hands over as they are."""

    def open(self, address: str) -> None:
        """Load model and dictionary."""
        self._worker = Worker(address)
        gc.freeze()  # as in a process of our own (local.py)

    def work(self, unit: str) -> UnitResult:
        """`Worker.work`."""
        return self._worker.work(unit)


def run_on_ray(
    address: str | Path,
    units: Sequence[str],
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float | None = None,
    cluster: str | None = None,
) -> Iterator[UnitResult]:
    """Work through units of the run at ``address`` on a Ray cluster; results as they come, each unit once.

    workers: actors at most; None: as many as the cluster has room for now. Those that find room work, and others join when
    there is some. gpus_per_worker, cpus_per_worker: what Ray keeps free for each, parts of one too; None: one of each if the
    run is one for GPUs, else as many CPUs as a worker of the run has threads. cluster: Ray's address (`10.0.0.1:6379`, `local`:
    a new one on this machine); None: what this process is connected to, RAY_ADDRESS, a cluster that was started on this
    machine, or a new one.

    Every machine must have this package and reach address and model by the same names.
    Raises InputError without Ray or a cluster, ResourceError once a unit has cost three actors, and what a worker raises.
    """
    store = Store.at(address)
    manifest = read_manifest(store)
    on_gpus = manifest.opening.device == "cuda"
    needs = _Needs(
        cpus=(1.0 if on_gpus else manifest.layout.threads) if cpus_per_worker is None else cpus_per_worker,
        gpus=(1.0 if on_gpus else 0.0) if gpus_per_worker is None else gpus_per_worker,
    )
    with _connected(cluster) as ray:
        pool = _Pool(ray, str(store.folder or address), units, needs)
        try:
            for _ in range(min(workers or needs.room(ray.cluster_resources()), len(units))):
                pool.hire()
            yield from pool.results()
        finally:
            pool.close()


@dataclass(frozen=True)
class _Needs:
    """Of an actor, in Ray's units."""

    cpus: float
    gpus: float

    def room(self, resources: dict[str, float]) -> int:
        """How many actors find room in a cluster; one at least, which then waits for it."""
        shares = ((resources.get("CPU", 0.0), self.cpus), (resources.get("GPU", 0.0), self.gpus))
        return max(1, min((int(there / each) for there, each in shares if each), default=1))


class _Pool:
    """Actors that work, and the units that wait."""

    def __init__(self, ray: Any, address: str, units: Sequence[str], needs: _Needs) -> None:
        self.ray, self.address, self.needs, self.waiting = ray, address, needs, deque(units)
        self.actor = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus)(Actor)
        self.hired: dict[
            Any, tuple[Any, str | None]
        ] = {}  # what is awaited: the actor, its unit (None: it opens the run)
        self.losses: Counter[str | None] = Counter()  # by unit; None: at opening the run, one after the other
        self.impatient = True  # nobody has answered yet

    def hire(self) -> None:
        """Ask for an actor; Ray starts it when it has a place for it."""
        actor = self.actor.remote()
        self.hired[actor.open.remote(self.address)] = (actor, None)

    def results(self) -> Iterator[UnitResult]:
        """Until no unit waits and none is worked on."""
        while self.waiting or any(unit is not None for _, unit in self.hired.values()):
            ready, _ = self.ray.wait(list(self.hired), timeout=PATIENCE if self.impatient else None)
            if not ready:
                self._say_what_is_waited_for()
                continue
            actor, unit = self.hired.pop(ready[0])
            try:
                answer = self.ray.get(ready[0])
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, CircuitTracerError) else error from None
            except self.ray.exceptions.RayError as error:  # the actor, its machine or the way to it is lost
                self._replace(actor, unit, error)
                continue
            self.impatient = False
            self.losses.pop(None, None)
            self._give(actor)
            if answer is not None:
                yield answer

    def _give(self, actor: Any) -> None:
        """The next unit; if there is none, its place is free for one that has to replace another."""
        if self.waiting:
            unit = self.waiting.popleft()
            self.hired[actor.work.remote(unit)] = (actor, unit)
        else:
            self._end(actor)

    def _replace(self, actor: Any, unit: str | None, error: Exception) -> None:
        self._end(actor)
        self.losses[unit] += 1
        if self.losses[unit] == MOST_DEATHS:
            raise _given_up(unit, error) from error
        if unit is not None:
            self.waiting.appendleft(unit)
        self.hire()

    def _say_what_is_waited_for(self) -> None:
        self.impatient = False
        there = self.ray.cluster_resources()
        warn(
            f"no worker has started within {PATIENCE:.0f} s. Each needs {self.needs.cpus:g} CPUs and {self.needs.gpus:g} GPUs "
            f"of one machine; in all, the cluster has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}. `ray status` says "
            "more."
        )

    def close(self) -> None:
        """End what still runs."""
        for actor, _ in self.hired.values():
            self._end(actor)

    def _end(self, actor: Any) -> None:
        with suppress(self.ray.exceptions.RayError):  # lost with its machine
            self.ray.kill(actor)


def _given_up(unit: str | None, error: Exception) -> ResourceError:
    what = f"unit {unit}" if unit is not None else "opening the model"
    why = str(error).splitlines()[-1].partition(" Some common causes")[0]
    return ResourceError(
        f"{what} cost {MOST_DEATHS} workers on Ray. Of the last one Ray says: {why} If their memory was short, give each more: "
        "--cpus-per-worker, --gpus-per-worker. What is finished is kept."
    )


@contextmanager
def _connected(cluster: str | None) -> Iterator[Any]:
    """Ray, connected. A connection that is there is used, and stays."""
    try:
        import ray
    except ImportError as error:
        raise missing_extra("runs on Ray", error, "ray") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        _reach(cluster)
        ray.init(address=cluster, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster{f' at {cluster}' if cluster else ''}: {first_line(error)}. Start one with `ray start --head` and "
            "give the address that it prints, or `local` for one on this machine."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(cluster: str | None) -> None:
    """Raises OSError if nothing answers at a host and port."""
    host, _, port = (cluster or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), REACHED_WITHIN).close()
