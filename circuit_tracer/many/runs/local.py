"""A run on one machine: in this process, or in several, which get their units one by one from here.

A process that dies (killed, out of memory) is noticed, and its unit is given to a new one. Units are independent and their
files whole or not there, so nothing else needs to be known of how far it was.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import CircuitTracerError, ResourceError
from circuit_tracer.many.runs.manifest import read_manifest
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.worker import UnitResult, Worker

MOST_DEATHS = 3  # of processes with one unit, or at their start


def run_locally(
    address: str | Path, units: Sequence[str], workers: int | None = None, devices: Sequence[str] = ()
) -> Iterator[UnitResult]:
    """Work through units of the run at ``address``; results as they come, each unit once.

    devices: shared out among workers; none: all of the kind that the run was begun on. workers: processes, each with a model of
    its own; 1: this process alone; None: as many as devices.
    Raises ResourceError once a unit has cost three processes their lives, and what a worker raises. Scripts that use several
    need `if __name__ == "__main__":`, as always with Python's processes.
    """
    if not units:
        return
    store = Store.at(address)
    where, devices = str(store.folder or address), devices or devices_of(read_manifest(store).opening.device)
    workers = workers or len(devices)
    if workers == 1:
        worker = Worker(where, devices[0])
        yield from map(worker.work, units)
        return
    pool = _Pool(where, units, devices)
    try:
        for _ in range(min(workers, len(units))):
            pool.hire()
        yield from pool.results()
    finally:
        pool.close()


def devices_of(kind: str) -> list[str]:
    """The devices of a kind that this machine has; one at least, which may turn out not to be there."""
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if kind == "cuda" else []
    return found or [kind]


@dataclass(frozen=True)
class _Hired:
    process: Any
    pipe: Connection
    device: str
    unit: str | None  # that it works on; None: it opens the run


class _Pool:
    """Processes that work, and the units that wait."""

    def __init__(self, address: str, units: Sequence[str], devices: Sequence[str]) -> None:
        self.address, self.waiting = address, deque(units)
        self.devices = deque(devices)
        self.deaths: Counter[str | None] = Counter()
        self.hired: list[_Hired] = []
        self.context = _context()

    def hire(self) -> None:
        """Start a process, on the device whose turn it is."""
        device = self.devices[0]
        self.devices.rotate(-1)
        here, there = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(there, self.address, device), daemon=True)
        process.start()
        there.close()  # so that the end of the process is the end of the pipe
        self.hired.append(_Hired(process, here, device, None))

    def results(self) -> Iterator[UnitResult]:
        """Until no unit waits and none is worked on."""
        while self.waiting or any(each.unit is not None for each in self.hired):
            ready = wait([each.pipe for each in self.hired])
            for each in [one for one in self.hired if one.pipe in ready]:
                self.hired.remove(each)
                try:
                    answer = each.pipe.recv()
                except (EOFError, OSError):
                    self._replace(each)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                self.deaths[each.unit] = 0
                self._give(each)
                if answer is not None:
                    yield answer

    def _give(self, to: _Hired) -> None:
        """The next unit, or leave to go."""
        unit = self.waiting.popleft() if self.waiting else None
        try:
            to.pipe.send(unit)
        except OSError:  # it died as it answered
            self._replace(_Hired(to.process, to.pipe, to.device, unit))
            return
        if unit is not None:
            self.hired.append(_Hired(to.process, to.pipe, to.device, unit))

    def _replace(self, dead: _Hired) -> None:
        dead.process.join()
        dead.pipe.close()
        self.deaths[dead.unit] += 1
        if self.deaths[dead.unit] == MOST_DEATHS:
            raise _given_up(dead)
        if dead.unit is not None:
            self.waiting.appendleft(dead.unit)
        self.devices.remove(dead.device)
        self.devices.appendleft(dead.device)
        self.hire()

    def close(self) -> None:
        """End what still runs."""
        for each in self.hired:
            each.process.kill()
        for each in self.hired:
            each.process.join()
            each.pipe.close()


def _serve(pipe: Connection, address: str, device: str) -> None:
    """What a process does: open the run, then work on what it is given until it is given nothing."""
    from transformers.utils.logging import disable_progress_bar

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gave the units; it ends this one
    try:
        disable_progress_bar()
        worker = Worker(address, device)
        gc.freeze()  # what has been loaded stays: to look through it for garbage again and again takes a tenth of the time
        pipe.send(None)
        while (unit := pipe.recv()) is not None:
            pipe.send(worker.work(unit))
    except (EOFError, BrokenPipeError):  # nobody is there any more
        return
    except CircuitTracerError as error:
        pipe.send(error)


def _context() -> Any:
    """Processes that do not inherit threads and devices: forked from one that has loaded the libraries, where there is such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Worker.__module__, "transformers"])
    return context


def _given_up(dead: _Hired) -> ResourceError:
    what = f"unit {dead.unit}" if dead.unit is not None else "opening the model"
    code = dead.process.exitcode
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return ResourceError(
        f"{what} ended {MOST_DEATHS} processes, the last one {how}. Signal 9 often means that the machine had no memory left: "
        "try fewer --workers, or --memory."
    )
