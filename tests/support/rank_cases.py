"""What ranks do in the tests of many devices. Work for `process_cases.together`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from circuit_tracer.errors import ResourceError
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.loop import normalised
from circuit_tracer.training.sparsity.ranking import kth_largest, top_k
from circuit_tracer.training.step import dead_features
from circuit_tracer.training.step.dead_features import Dead
from circuit_tracer.training.step.questions import Questions
from tests.support.loop_cases import LAYERS, Run, reports
from tests.support.process_cases import die


def train(
    ranks: FeatureRanks, run: Run, folder: Path, until: int | None = None, data_parallel: int = 1
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Go on from the last checkpoint to step ``until`` or the end, and save. Returns reports and what all ranks share."""
    ranks = ranks.grid(data_parallel)
    loop = run.loop(folder, ranks=ranks)
    if until is None:
        loop.run()
    else:
        while loop.state.step < until:
            loop._step()
    loop.save()
    return reports(loop), loop.state.shared_tensors()


def train_all(ranks: FeatureRanks, runs: list[Run], folder: Path, data_parallel: int = 1) -> list[Any]:
    """Each run in a folder of its name."""
    return [train(ranks, run, folder / str(run), data_parallel=data_parallel) for run in runs]


def train_in_background(ranks: FeatureRanks, run: Run, folder: Path) -> str:
    """To the end, with a checkpoint after every second step; the last one."""
    loop = run.loop(folder, ranks=ranks, background=True, run__checkpoint_every_steps=2)
    loop.run()
    return str(loop.saved)


def levels(ranks: FeatureRanks, run: Run, data_parallel: int = 1) -> list[float]:
    """Calibrated at the start of a run."""
    ranks = ranks.grid(data_parallel)
    state = run.state(ranks)
    batches = [normalised(run.stream().batch(number), state.normalisation).x_SBD for number in range(2)]
    return level_scores(state.dictionary, batches, run.config().sparsity, None, ranks)


def full_rooms(ranks: FeatureRanks, run: Run, data_parallel: int) -> bool:
    """Whether AuxK's entries have to be found again, if they were too many for the first rank alone."""
    first, ranks = ranks.first, ranks.grid(data_parallel)
    state, questions = run.state(ranks), Questions()
    batch = normalised(run.stream(ranks=ranks).batch(0), state.normalisation)
    dead = Dead([torch.ones_like(norms, dtype=torch.bool) for norms in state.dictionary.norms], ranks, questions)

    def found(x_BD: Tensor, weight_nD: Tensor, bias_n: Tensor, k: int, *_: Any) -> tuple[SparseActivations, Tensor]:
        return top_k(x_BD, weight_nD, bias_n, k, ranks), torch.tensor(10**6 if first else 0)

    settings = run.config().sparsity
    with patch.object(dead_features, "on_gpu", lambda _: True), patch.object(dead_features, "top_k_at_most", found):
        made = dead_features.auxiliary(state.dictionary, batch.x_SBD, batch.y_BSD, settings, dead, ranks)
    assert made is not None
    assert made.full is not None
    return bool(made.full)


def largest(ranks: FeatureRanks, scores: list[Tensor], counts: list[int]) -> list[float]:
    """The k-th largest of scores dealt out to the ranks, for several k."""
    own = [one[ranks.rank :: ranks.world] for one in scores]
    return [float(kth_largest(own, k, ranks)) for k in counts]


def collectives(ranks: FeatureRanks) -> dict[str, Any]:
    """What each gives."""
    number = torch.tensor([ranks.rank + 1])
    return {
        "sum": ranks.all_reduce_(number.clone()).tolist(),
        "joined": ranks.all_gather(torch.full((ranks.rank, 2), float(ranks.rank))).tolist(),
        "anywhere": [ranks.any(False), ranks.any(ranks.rank == ranks.world - 1)],
        "first": ranks.first,
        "rank": ranks.rank,
    }


def fall(ranks: FeatureRanks, run: Run, folder: Path, how: str, step: int) -> None:
    """Save after every second step; in ``step`` the last rank falls."""
    loop = run.loop(folder, ranks=ranks, run__checkpoint_every_steps=2)
    genuine = loop.stream.next

    def maybe() -> Any:
        if loop.state.step == step and ranks.rank == ranks.world - 1:
            FALLS[how]()
        return genuine()

    loop.stream.next = maybe  # type: ignore[method-assign]
    loop.run()


def fall_while_saving(ranks: FeatureRanks, run: Run, folder: Path) -> None:
    """The last rank is killed in the middle of its second save."""
    writes, genuine = iter(range(LAYERS + 1)), checkpoint._write_tensors

    def maybe(*args: Any) -> None:
        if ranks.rank == ranks.world - 1 and next(writes, None) is None:
            die()
        genuine(*args)

    checkpoint._write_tensors = maybe  # type: ignore[assignment]
    run.loop(folder, ranks=ranks, run__checkpoint_every_steps=2).run()


def refuse(ranks: FeatureRanks, run: Run, folder: Path) -> str:
    """One rank's disk is full; the message of every rank."""
    loop = run.loop(folder, ranks=ranks)
    loop._step()
    loop.save()
    loop._step()
    if ranks.rank == ranks.world - 1:
        checkpoint._write_tensors = _full  # type: ignore[assignment]
    try:
        loop.save()
    except ResourceError as error:
        return str(error)
    return "saved"


def break_down(ranks: FeatureRanks, run: Run, folder: Path) -> None:
    """A weight of the last rank is NaN."""
    loop = run.loop(folder, ranks=ranks)
    loop._step()
    if ranks.rank == ranks.world - 1:
        loop.state.dictionary.W_dec[1][:, 0] = torch.nan
    loop._step()


def run_out(ranks: FeatureRanks, run: Run, folder: Path) -> None:
    """The data end after three batches."""
    run.loop(folder, n_batches=3, ranks=ranks).run()


def press(ranks: FeatureRanks, run: Run, folder: Path) -> int:
    """Ctrl-C reaches one rank only, in step 3; the step all stop at."""
    loop = run.loop(folder, ranks=ranks)
    genuine = loop.stream.next

    def maybe() -> Any:
        if loop.state.step == 3 and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return genuine()

    loop.stream.next = maybe  # type: ignore[method-assign]
    try:
        loop.run()
    except KeyboardInterrupt:
        return loop.state.step
    return -1


def _full(tensors: dict[str, Tensor], path: Path, *_: Any) -> None:
    raise ResourceError(f"could not write {path}")


def _sleep() -> None:
    time.sleep(600)


FALLS = {"exit": lambda: os._exit(1), "kill": die, "hang": _sleep}
