"""Processes that share the features give what one process gives; when one falls the others end and the run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import InputError, NumericalError, ResourceError
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity.ranking import kth_largest
from tests.support import rank_cases
from tests.support.loop_cases import Run, differences, reports, tensors
from tests.support.process_cases import Ended, results, together

# every activation and kind; all have AuxK and pre-activation loss, relu the penalty, while jumprelu is steered
IN_PARTS: dict[str, Any] = {"accumulate": 5, "optimizer": (("averaging", 0.4), ("place", "host"))}
RUNS = [
    Run("clt", "batch_topk", "float64", jacobian=True, steps=5),
    Run("plt", "topk", "float64", steps=5),
    Run("skip", "jumprelu", "float64", jacobian=True, steps=5, **IN_PARTS),
    Run("sae", "relu", "float64", steps=5, **IN_PARTS),
    Run("sae", "switch", "float64", steps=4),
    Run("clt", "gated", "float64", steps=4, prefixes=(4, 9)),
]
SINGLES = [Run("clt", "batch_topk", steps=4), Run("sae", "jumprelu", steps=4), Run("skip", "topk", "bfloat16", steps=4)]
TOLERANCE = 1e-9
# processes, and groups of them that share the tokens
GRIDS = [(2, 1), (2, 2), (4, 2)]
grids = pytest.mark.parametrize(
    "grid",
    [
        pytest.param(
            grid,
            id=f"{grid[0]}ranks" + f"-{grid[1]}groups" * (grid[1] > 1),
            marks=[pytest.mark.slow("four processes; two share the one and the other above")] if grid[0] > 2 else [],
        )
        for grid in GRIDS
    ],
)
worlds = pytest.mark.parametrize("world", [2, 4], ids=lambda world: f"{world}ranks")
Trained = Callable[[tuple[int, int]], tuple[Path, list[Any]]]


def alone(run: Run, folder: Path) -> tuple[list[dict[str, Any]], TrainingState]:
    loop = run.loop(folder)
    loop.run()
    return reports(loop), loop.state


def last_state(run: Run, folder: Path) -> TrainingState:
    return run.loop(folder).state


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Numbers in reports: equal up to rounding, counts exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name], tolerance)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            close(one, other, tolerance)
    elif expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


def close_states(found: TrainingState, expected: TrainingState, tolerance: float = TOLERANCE) -> None:
    named = tensors(found)
    for name, tensor in tensors(expected).items():
        torch.testing.assert_close(
            named[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Of a grid: the folder, and what each rank returned of RUNS, with two ranks also of SINGLES."""

    @cache
    def of(grid: tuple[int, int]) -> tuple[Path, list[Any]]:
        world, groups = grid
        folder, runs = tmp_path_factory.mktemp(f"{world}ranks"), RUNS + SINGLES if grid == (2, 1) else RUNS
        return folder, results(together(world, rank_cases.train_all, runs, folder, groups, folder=folder))

    return of


@pytest.mark.slow("starts processes, 8 s")
@pytest.mark.few
@grids
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_losses_and_weights_are_those_of_one_process(
    grid: tuple[int, int], run: Run, trained: Trained, tmp_path: Path
) -> None:
    folder, returned = trained(grid)
    expected, state = alone(run, tmp_path)
    assert any(any(report["dead_S"]) for report in expected)
    for of_rank in returned:
        found, _ = of_rank[RUNS.index(run)]
        close(found, expected)
        assert [report["l0_S"] for report in found] == [report["l0_S"] for report in expected]
        assert [report["dead_S"] for report in found] == [report["dead_S"] for report in expected]
    close_states(last_state(run, folder / str(run)), state)


@pytest.mark.parametrize("run", SINGLES, ids=str)
def test_losses_are_those_of_one_process_in_lower_precision(run: Run, trained: Trained, tmp_path: Path) -> None:
    _, returned = trained((2, 1))
    expected, _ = alone(run, tmp_path)
    found, _ = returned[0][len(RUNS) + SINGLES.index(run)]
    # in bfloat16 a difference in the last bit of a sum may round a weight the other way
    tolerance = 1e-4 if run.dtype == "float32" else 2e-2
    for one, other in zip(found, expected, strict=True):
        close(one["loss"], other["loss"], tolerance)
        close(one["nmse_S"], other["nmse_S"], tolerance)


@grids
def test_what_ranks_share_is_bitwise_the_same_on_all(grid: tuple[int, int], trained: Trained) -> None:
    _, returned = trained(grid)
    for of_rank in returned[1:]:
        for (first_reports, first_shared), (other_reports, other_shared) in zip(returned[0], of_rank, strict=True):
            assert other_reports == first_reports
            assert differences(other_shared, first_shared) == []


@pytest.mark.slow("takes 2 s")
@worlds
def test_the_kth_largest_over_ranks_is_exactly_that_of_all(world: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(57, generator=generator), torch.rand(1, generator=generator) * 1e-30, torch.ones(9)]
    counts = [0, 1, 5, 9, 10, 30, 66, 67, 68]
    for each in (scores, [one.double() ** 3 for one in scores]):
        expected = [float(kth_largest(each, k, FeatureRanks())) for k in counts]
        in_order = torch.cat(each).sort(descending=True).values.tolist()
        assert expected == [float("inf"), *(in_order[k - 1] for k in counts[1:-1]), 0.0]
        assert results(together(world, rank_cases.largest, each, counts, folder=tmp_path)) == [expected] * world


@pytest.mark.slow("takes 1.2 s")
@pytest.mark.parametrize("run", [Run("clt", "batch_topk", "float64"), Run("plt", "topk", "float64")], ids=str)
def test_calibrated_levels_are_those_of_one_process(run: Run, tmp_path: Path) -> None:
    expected = rank_cases.levels(FeatureRanks(), run)
    for groups in (1, 2):
        for found in results(together(2, rank_cases.levels, run, groups, folder=tmp_path)):
            assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow("a run a grid of processes: 3 s")
@pytest.mark.parametrize(
    "run",
    [
        Run("clt", "batch_topk", "float64"),
        Run("skip", "jumprelu", "float64", jacobian=True, optimizer=(("averaging", 0.5),), accumulate=2),
    ],
    ids=str,
)
def test_a_checkpoint_resumes_on_any_grid_of_ranks(run: Run, tmp_path: Path) -> None:
    expected, state = alone(run, tmp_path / "alone")
    found = []
    for world, groups, until in ((2, 1, 2), (1, 1, 3), (4, 2, 4), (1, 1, 5), (2, 2, None)):
        if world == 1:
            returned = [rank_cases.train(FeatureRanks(), run, tmp_path / "parts", until)]
        else:
            work = (rank_cases.train, run, tmp_path / "parts", until, groups)
            returned = results(together(world, *work, folder=tmp_path))
        found += returned[0][0]
    close(found, expected)
    close_states(last_state(run, tmp_path / "parts"), state)


def test_a_search_that_one_rank_must_repeat_all_repeat(tmp_path: Path) -> None:
    """Also those of other groups: in the repetition all of them average losses."""
    work = (rank_cases.full_rooms, Run("clt", "topk"), 2)
    assert results(together(2, *work, folder=tmp_path)) == [True, True]


def test_features_that_ranks_cannot_share_are_an_input_error() -> None:
    with pytest.raises(InputError, match=r"dictionary\.features is 16, which 3 ranks cannot share evenly; take 15 or"):
        FeatureRanks(1, 3).share(16)
    with pytest.raises(InputError, match="take 4 or another number of ranks"):
        FeatureRanks(0, 4).share(3)
    assert [FeatureRanks(rank, 4).share(16) for rank in range(4)] == [slice(4 * r, 4 * r + 4) for r in range(4)]


def test_grids_and_batches_that_do_not_come_out_even_are_an_input_error() -> None:
    with pytest.raises(
        InputError,
        match=r"run\.data_parallel is 4, but the run has 6 processes, .* Start a multiple of 4 with torchrun",
    ):
        FeatureRanks(1, 6).grid(4)
    with pytest.raises(
        InputError, match=r"run\.batch is 20, which run\.data_parallel 3 groups cannot share evenly; take 18"
    ):
        FeatureRanks(replicas=Ranks(1, 3)).tokens(20)
    assert [FeatureRanks(replicas=Ranks(rank, 4)).tokens(20) for rank in (0, 3)] == [slice(0, 5), slice(15, 20)]


def test_collectives(tmp_path: Path) -> None:
    alone = rank_cases.collectives(FeatureRanks())
    assert alone == {"sum": [1], "joined": [], "anywhere": [False, True], "first": True, "rank": 0}
    found = results(together(3, rank_cases.collectives, folder=tmp_path))
    for rank, of_rank in enumerate(found):
        assert of_rank == {
            "sum": [6],
            "joined": [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]],
            "anywhere": [False, True],
            "first": rank == 0,
            "rank": rank,
        }


# ---- ranks that fall


def survivors_end_with_a_resource_error(ended: list[Ended]) -> None:
    for each in ended[:-1]:
        assert isinstance(each.error, ResourceError)
        assert "another process of this run ended or does not answer" in str(each.error)
        assert "--resume" in str(each.error)


@pytest.mark.slow("waits for ranks that are gone: 6 s")
@pytest.mark.parametrize("how", ["exit", "kill", "hang"])
def test_a_rank_that_falls_ends_the_others_and_the_run_resumes(how: str, tmp_path: Path) -> None:
    run = Run("clt", "batch_topk", "float64")
    timeout = timedelta(seconds=2) if how == "hang" else timedelta(minutes=10)
    hangs = [1] if how == "hang" else []
    ended = together(
        2, rank_cases.fall, run, tmp_path / "run", how, 5, folder=tmp_path, limit=45, timeout=timeout, hangs=hangs
    )
    survivors_end_with_a_resource_error(ended)
    last = checkpoint.latest(tmp_path / "run")
    assert last is not None
    assert last.step == 4
    expected, state = alone(run, tmp_path / "alone")
    for world in (1, 4) if how == "exit" else (1,):
        shutil.copytree(tmp_path / "run", tmp_path / f"on {world}")
        if world == 1:
            returned = [rank_cases.train(FeatureRanks(), run, tmp_path / "on 1")]
        else:
            returned = results(together(world, rank_cases.train, run, tmp_path / f"on {world}", folder=tmp_path))
        close(returned[0][0], expected[4:])
        close_states(last_state(run, tmp_path / f"on {world}"), state)


def test_a_rank_killed_while_saving_costs_no_complete_checkpoint(tmp_path: Path) -> None:
    run = Run("clt", "batch_topk")
    ended = together(2, rank_cases.fall_while_saving, run, tmp_path / "run", folder=tmp_path)
    survivors_end_with_a_resource_error(ended)
    last = checkpoint.latest(tmp_path / "run")
    assert last is not None
    assert last.step == 2
    results(together(2, rank_cases.train, run, tmp_path / "run", folder=tmp_path))
    assert not list((tmp_path / "run").glob("*.partial"))


def test_ranks_write_checkpoints_in_the_background_too(tmp_path: Path) -> None:
    run, folder = Run("clt", "batch_topk"), tmp_path / "run"
    found = results(together(2, rank_cases.train_in_background, run, folder, folder=tmp_path))
    assert found == [str(folder / "step-00000006")] * 2
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000006"]
    assert last_state(run, folder).step == 6


def test_a_full_disk_of_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    found = results(together(2, rank_cases.refuse, Run(), tmp_path / "run", folder=tmp_path))
    assert found[0].startswith("another process of this run could not write its part of a checkpoint")
    assert found[1].startswith("could not write")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000001"]


def test_a_broken_weight_of_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    ended = together(2, rank_cases.break_down, Run(), tmp_path / "run", folder=tmp_path)
    messages = {str(each.error) for each in ended if isinstance(each.error, NumericalError)}
    assert len(messages) == 1
    assert "step 1: the reconstruction error of source layer 1 is nan" in messages.pop()


def test_ranks_whose_data_end_stop_alike(tmp_path: Path) -> None:
    ended = together(2, rank_cases.run_out, Run(), tmp_path / "run", folder=tmp_path)
    messages = {str(each.error) for each in ended if isinstance(each.error, InputError)}
    assert len(messages) == 1
    assert "the data ended after 3 of 6 steps" in messages.pop()


def test_control_c_on_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    assert results(together(2, rank_cases.press, Run(), tmp_path / "run", folder=tmp_path)) == [4, 4]
    last = checkpoint.latest(tmp_path / "run")
    assert last is not None
    assert last.step == 4
