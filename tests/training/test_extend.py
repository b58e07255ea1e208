"""A run goes on with more tokens or other schedules: bitwise as one run where they are the same, and recorded where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.training.config.files import load
from circuit_tracer.training.config.keys import keys, sections
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.changes import (
    FREE,
    MAY,
    ON_RESUME,
    Change,
    compared,
    last_reached,
    settings_of,
    verdict,
)
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.log import JsonLog
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.schedules import Reached
from tests.support.config_cases import small
from tests.support.loop_cases import Run, differences, numbers, reports, tensors
from tests.support.train_cases import settings, whole

STEPS, BATCH = 9, 16
SAME_SCHEDULE: dict[str, dict[str, Any]] = {
    "a constant rate": {
        "optimizer__learning_rate": 0.01,
        "optimizer__decay": 0.0,
        "optimizer__warmup_steps": 2,
        "sparsity__anneal": 0,
        "sparsity__dead_after_tokens": 32,
    },
    "schedules made for the whole": {"run__schedule_tokens": STEPS * BATCH, "optimizer__warmup_steps": 2},
}


def last(folder: Path) -> Checkpoint:
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint."""
    from safetensors.torch import load_file

    return {
        f"{path.name} {name}": tensor
        for path in sorted(last(folder).folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def changed_lines(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{"step": entry["step"], "changed": entry["changed"]} for entry in entries if "changed" in entry]


each_case = pytest.mark.parametrize("case", SAME_SCHEDULE)


def piece(folder: Path, steps: int, **changes: Any) -> Loop:
    """A loop run up to so many steps, from the last checkpoint in ``folder`` if there is one, as the trainer does it."""
    loop = Run("clt", "batch_topk").loop(folder, run__tokens=20 * steps, **changes)
    before = checkpoint.latest(folder)
    history = [] if before is None else compared(before, loop.config, folder)
    loop.reached = last_reached(history)
    loop.facts = {"config": settings_of(loop.config), "changes": [change.to_json() for change in history]}
    loop.run()
    loop.save()
    return loop


@each_case
def test_three_pieces_of_a_loop_are_bitwise_one(case: str, tmp_path: Path) -> None:
    given = SAME_SCHEDULE[case] | {"sparsity__active_at_start": None, "optimizer__learning_rate": 0.02}
    if "run__schedule_tokens" in given:
        given["run__schedule_tokens"] = STEPS * 20
    one = piece(tmp_path / "whole", STEPS, **given)
    pieces = [piece(tmp_path / "pieces", steps, **given) for steps in (3, 6, 9)]
    assert differences(tensors(pieces[-1].state), tensors(one.state)) == []
    assert [report | {"steps": STEPS} for each in pieces for report in reports(each)] == reports(one)
    piece(tmp_path / "other", 3, **given)
    other = piece(tmp_path / "other", STEPS, **given | {"optimizer__learning_rate": 0.01})
    assert differences(tensors(other.state), tensors(one.state)), "changed settings are used"


@pytest.mark.parametrize(("schedule", "known"), [(40, 6), (8, 2)], ids=["the same k", "a k that falls at once"])
def test_errors_at_another_k_are_not_the_usual_ones(schedule: int, known: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {"sparsity__active_at_start": None, "sparsity__anneal": 1.0, "optimizer__warmup_steps": 0}
    piece(tmp_path, 4, **given, run__schedule_tokens=20 * 40)
    assert len(piece(tmp_path, 6, **given, run__schedule_tokens=20 * schedule).state.spikes.errors) == known


@pytest.mark.slow("four whole runs each; the loop alone is tested above")
@each_case
def test_three_pieces_are_bitwise_one_run(case: str, tmp_path: Path) -> None:
    given = SAME_SCHEDULE[case] | {"evaluation__tokens": 16}
    expected = [numbers(report) for report in whole(tmp_path, "whole", given | {"run__tokens": STEPS * BATCH})]
    found = []
    for steps in (3, 6, 9):
        changes = given | {"run__tokens": steps * BATCH}
        found += [numbers(report) for report in whole(tmp_path, "pieces", changes, resume=steps > 3)]
    assert [report | {"steps": STEPS} for report in found] == expected
    one, other = stored(tmp_path / "whole"), stored(tmp_path / "pieces")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert changed_lines(tmp_path / "pieces") == [
        {"step": 3, "changed": {"run.tokens": [48, 96]}},
        {"step": 6, "changed": {"run.tokens": [96, 144]}},
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder around `run`, six steps to a rate of zero."""
    folder = tmp_path_factory.mktemp("finished")
    whole(folder, "run", {"run__tokens": 6 * BATCH, "optimizer__decay": 0.5, "optimizer__warmup_steps": 2})
    return folder


@pytest.mark.slow("takes 1.7 s")
def test_a_finished_run_is_warmed_up_again_and_says_so_everywhere(finished: Path) -> None:
    shutil.copytree(finished / "run", finished / "extended")
    now = {"run__tokens": 30 * BATCH, "optimizer__decay": 0.5, "optimizer__warmup_steps": 2}
    now |= {"optimizer__learning_rate": 0.01, "data__epochs": None, "evaluation__tokens": 16}
    told = whole(finished, "extended", now, resume=True)
    assert [report.step for report in told] == list(range(7, 31))
    rates = [report.learning_rate for report in told]
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert max(rates) == 0.01
    assert {report.active for report in told} == {settings(finished, "run", **now).sparsity.active}
    expected = {
        "data.epochs": [1, None],
        "optimizer.learning_rate": [settings(finished, "run").optimizer.learning_rate, 0.01],
        "run.tokens": [96, 480],
    }
    assert changed_lines(finished / "extended") == [{"step": 6, "changed": expected}]
    state = last(finished / "extended").content
    assert [(one["step"], one["changed"]) for one in state["changes"]] == [(6, expected)]
    assert state["config"]["run.tokens"] == 480
    assert load(finished / "extended").run.tokens == 480
    card = (finished / "extended" / "transcoder" / "README.md").read_text()
    assert "- Changed after step 6: " in card
    assert "`run.tokens` from 96 to 480" in card


REFUSED = {
    "run__seed": (4, "weights and the order of the data were drawn with it"),
    "run__batch": (8, "count in batches"),
    "run__start_from": ("elsewhere", "read before the first step only"),
    "dictionary__features": (64, "of that kind, size and number format"),
    "dictionary__kind": ("plt", "of that kind"),
    "data__context_length": (4, "position in the data"),
    "data__statistics_tokens": (32, "read before the first step only"),
    "sparsity__activation": ("topk", "ranked"),
    "model__dtype": ("bfloat16", "other activations"),
}


@pytest.mark.slow("takes 1.4 s")
@pytest.mark.parametrize("name", REFUSED)
def test_what_must_stay_is_refused_with_the_reason(name: str, finished: Path) -> None:
    value, reason = REFUSED[name]
    kept = {"run__tokens": 6 * BATCH, "optimizer__decay": 0.5, "optimizer__warmup_steps": 2}
    config = settings(finished, "run", **kept | {name: value})
    with pytest.raises(CompatibilityError) as caught:
        compared(last(finished / "run"), config, finished / "run")
    assert f"{name.replace('__', '.')} (" in str(caught.value)
    assert reason in str(caught.value)
    assert f"--run.start_from {finished / 'run'}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__tokens": 5 * BATCH}, r"run\.tokens is 80, 5 steps .* is at step 6 already; give at least 96"),
        ({"optimizer__beta1": 0.8}, r"has done all of its 6 steps, so that optimizer\.beta1 would change nothing"),
    ],
    ids=["fewer tokens than done", "no step left"],
)
def test_a_change_that_cannot_act_is_refused(changes: dict[str, Any], message: str, finished: Path) -> None:
    kept = {"run__tokens": 6 * BATCH, "optimizer__decay": 0.5, "optimizer__warmup_steps": 2}
    with pytest.raises(InputError, match=message):
        compared(last(finished / "run"), settings(finished, "run", **kept | changes), finished / "run")


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    assert {verdict(key) for key in keys()} >= {MAY, FREE}
    assert set(ON_RESUME) <= {*keys(), *sections()}
    may = {key for key in keys() if verdict(key) == MAY}
    assert may == {name.replace("__", ".") for name in {*ACTING, *SILENT}}


# Another value for each key that may change, and the rule that reads it.
ACTING: dict[str, tuple[str, Any]] = {
    "sparsity__active": ("batch_topk", 2.0),
    "sparsity__active_at_start": ("batch_topk", 6.0),
    "sparsity__anneal": ("batch_topk", 0.9),
    "sparsity__penalty": ("jumprelu", 2.0),
    "sparsity__penalty_scale": ("jumprelu", 1.0),
    "sparsity__penalty_warmup": ("jumprelu", 0.1),
    "sparsity__bandwidth": ("jumprelu", 0.9),
    "sparsity__band_probability": ("jumprelu", 0.2),
    "sparsity__aux_active": ("batch_topk", 1),
    "sparsity__aux_weight": ("batch_topk", 1.0),
    "sparsity__pre_activation_weight": ("batch_topk", 0.3),
    "sparsity__dead_after_tokens": ("batch_topk", 20),
    "sparsity__prefixes": ("batch_topk", [2]),
    "sparsity__prefixes_drawn": ("batch_topk", 1),
    "sparsity__balance_weight": ("switch", 5.0),
    "optimizer__learning_rate": ("batch_topk", 0.01),
    "optimizer__beta1": ("batch_topk", 0.5),
    "optimizer__beta2": ("batch_topk", 0.5),
    "optimizer__eps": ("batch_topk", 1e-3),
    "optimizer__warmup_steps": ("batch_topk", 6),
    "optimizer__decay": ("batch_topk", 0.7),
    "run__tokens": ("batch_topk", 16 * 20),
    "run__schedule_tokens": ("batch_topk", 16 * 20),
    "run__accumulate": ("batch_topk", 2),
}
SILENT: dict[str, Any] = {
    "optimizer__skip_above": 9.0,
    "data__epochs": None,
}  # here: no step is skipped, and batches come from memory
BEGUN = {"batch_topk": {}, "jumprelu": {"sparsity__penalty": 0.5}, "switch": {}}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """Of each rule: the folder after two of eight steps, and the state after all of them, nothing changed."""
    found = {}
    for rule, given in BEGUN.items():
        folder, loop = tmp_path_factory.mktemp(rule), None
        for last_step in (2, 8):
            loop = begun(folder / str(last_step), rule, **given)
            while loop.state.step < last_step:
                loop._step()
            loop.save()
        assert loop is not None
        found[rule] = folder / "2", tensors(loop.state)
    return found


def begun(folder: Path, rule: str, **changes: Any) -> Loop:
    loop = Run("sae" if rule == "switch" else "clt", rule, steps=8).loop(folder, **changes)
    before = checkpoint.latest(folder)
    history = [] if before is None else compared(before, loop.config, folder)
    loop.reached = last_reached(history)
    loop.facts = {"config": settings_of(loop.config)}
    return loop


@pytest.mark.few
@pytest.mark.parametrize("name", [*ACTING, *SILENT])
def test_what_may_change_acts(
    name: str, halves: dict[str, tuple[Path, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    rule, value = ACTING.get(name) or ("batch_topk", SILENT[name])
    folder, unchanged = halves[rule]
    shutil.copytree(folder, tmp_path / "changed")
    loop = begun(tmp_path / "changed", rule, **BEGUN[rule] | {name: value})
    assert loop.state.step == loop.reached.step == 2
    while loop.state.step < 8:
        loop._step()
    assert bool(differences(tensors(loop.state), unchanged)) == (name in ACTING)


def test_a_change_taken_back_is_not_in_the_log(tmp_path: Path) -> None:
    """A run killed before the next checkpoint resumes from the same step, perhaps without the change."""
    path = tmp_path / "log.jsonl"
    entries = [Change({"run.tokens": (10, new)}, Reached(step)).entry() for step, new in ((4, 20), (8, 40), (8, 50))]
    for changes in (entries[:1], entries[:2], [entries[0], entries[2]]):
        with JsonLog(path, changes[-1]["step"], changes) as log:
            log._append({"step": changes[-1]["step"] + 4})
    assert changed_lines(tmp_path) == [entries[0], entries[2]]


def test_schedules_never_go_back_and_rise_only_slowly() -> None:
    old = small(run__tokens=100, run__batch=1, optimizer__warmup_steps=20, optimizer__learning_rate=1.0)
    new = small(run__tokens=1000, run__batch=1, optimizer__warmup_steps=20, optimizer__learning_rate=1.0)
    reached = schedules.reach(old, 100, Reached())
    assert (reached.rate, reached.annealed) == (0.0, 1.0)
    rates = [schedules.learning_rate(new, step, reached) for step in range(100, 1000)]
    assert rates[:21] == pytest.approx([min(1.0, (step + 1) / 20) for step in range(21)])
    assert rates[700:] == [schedules.learning_rate(new, step) for step in range(800, 1000)]
    assert schedules.active(new, 100, reached) == old.sparsity.active < schedules.active(new, 100)
    again = schedules.reach(new, 105, reached)  # changed once more while it is warmed up
    assert again.rate == rates[5]
    shorter = small(run__tokens=106, run__batch=1, optimizer__warmup_steps=20, optimizer__learning_rate=1.0)
    assert schedules.learning_rate(shorter, 105, again) < again.rate  # what falls, falls at once
    middle = schedules.reach(old, 50, Reached())
    for step in range(50, 100):  # the same schedule
        assert schedules.learning_rate(old, step, middle) == schedules.learning_rate(old, step)
        assert schedules.active(old, step, middle) == schedules.active(old, step)
