"""Runs in processes of their own: ranks that talk through gloo, and runs that are killed.

Processes are forked from a server that has imported torch once, so that each starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from circuit_tracer.ranks import TIMEOUT
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support.command import Outcome

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":
    preloaded = ["torch.distributed", "circuit_tracer.training.run.loop", "safetensors.torch"]
    preloaded += [
        "circuit_tracer.features.build",
        "circuit_tracer.viewer.server",
        "transformers.models.llama.modeling_llama",
    ]
    CONTEXT.set_forkserver_preload(preloaded)


@dataclass(frozen=True)
class Ended:
    """How a process ended: what its work returned or raised, or nothing if it was killed."""

    code: int  # exit code, minus the signal if one killed it
    result: Any = None
    error: BaseException | None = None


def alone(work: Callable[..., Any], *arguments: Any, folder: Path, kill_after: float | None = None) -> Ended:
    """Call ``work(*arguments)`` in a process; kill it after some seconds if asked to."""
    process = CONTEXT.Process(target=_main, args=(folder / "alone.pickle", work, arguments))
    process.start()
    process.join(kill_after)
    process.kill()
    return _ended(process, folder / "alone.pickle")


def command(*words: object, folder: Path, place: Mapping[str, str] | None = None) -> Any:
    """A process in which `circuit-tracer` runs with these words; what it prints goes to the files out and err of ``folder``.

    ``place``: what torchrun says to a process, if it is to be one of several.
    """
    folder.mkdir()
    process = CONTEXT.Process(target=_command, args=([str(word) for word in words], folder, place or {}))
    process.start()
    return process


def ranks_of_command(world: int, *words: object, folder: Path) -> list[Any]:
    """The processes that `torchrun -m circuit_tracer` would start with these words, but they need not import anything."""
    folder.mkdir()
    return [
        command(*words, folder=folder / place["RANK"], place=place | {"LOCAL_WORLD_SIZE": str(world)})
        for place in _places(world)
    ]


def commands_together(world: int, *words: object, folder: Path, limit: float = 60.0) -> list[Outcome]:
    """How such processes end and what they print, by rank."""
    processes = ranks_of_command(world, *words, folder=folder)
    end = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not late, f"ranks {late} of {world} still ran after {limit} s"
    printed = [[(folder / str(rank) / name).read_text() for name in ("out", "err")] for rank in range(world)]
    return [Outcome(process.exitcode, *each) for process, each in zip(processes, printed, strict=True)]


def together(
    world: int,
    work: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    limit: float = 60.0,
    timeout: timedelta = TIMEOUT,
    hangs: Sequence[int] = (),
) -> list[Ended]:
    """Call ``work(ranks, *arguments)`` on every rank of a group; all but ``hangs`` must end within ``limit`` seconds."""
    files = [folder / f"rank-{rank}.pickle" for rank in range(world)]
    processes = [
        CONTEXT.Process(target=_main, args=(file, _ranked, (place, timeout, work, arguments)))
        for file, place in zip(files, _places(world), strict=True)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    others = [process for rank, process in enumerate(processes) if rank not in hangs]
    for process in others:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process in others and process.is_alive()]
    for process in processes:
        process.kill()
    assert not late, f"ranks {late} of {world} still ran after {limit} s"
    return [_ended(process, path) for process, path in zip(processes, files, strict=True)]


def results(ended: list[Ended]) -> list[Any]:
    """What the works returned; the first error is raised."""
    for each in ended:
        if each.error is not None:
            raise each.error
    assert [each.code for each in ended] == [0] * len(ended)
    return [each.result for each in ended]


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _places(world: int) -> list[dict[str, str]]:
    """What torchrun says to each process of a group, in its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    all_of_them = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        all_of_them["GLOO_SOCKET_IFNAME"] = "lo"
    return [{**all_of_them, "RANK": str(rank)} for rank in range(world)]


def _ranked(place: Mapping[str, str], timeout: timedelta, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= place
    ranks = FeatureRanks.from_environment(torch.device("cpu"), timeout)
    found = work(ranks, *arguments)
    ranks.barrier()
    dist.destroy_process_group()
    return found


def _command(words: list[str], folder: Path, place: Mapping[str, str]) -> None:
    os.environ |= place
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["circuit-tracer", *words]
    from circuit_tracer.cli.main import main

    main()


def _main(path: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    ended = Ended(0)
    try:
        ended = Ended(0, work(*arguments))
    except BaseException as error:
        ended = Ended(0, error=error)
    path.write_bytes(pickle.dumps(ended))
    # a rank that met an error leaves at once, as an interpreter that prints a traceback does in the end
    os._exit(0)


def _ended(process: Any, path: Path) -> Ended:
    process.join()
    if process.exitcode != 0:
        return Ended(process.exitcode)
    ended: Ended = pickle.loads(path.read_bytes())
    return ended
