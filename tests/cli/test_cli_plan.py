"""`circuit-tracer plan` says what `attribute` will do, without weights; `--memory` and several processes from the shell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuit_tracer.attribution import forecast, trace
from circuit_tracer.attribution.plan import MemoryPlan
from circuit_tracer.graph.files.formats import read_graph
from tests.support.command import Folders, Run
from tests.support.process_cases import commands_together

PROMPT = "the capital of Texas is"  # 6 tokens with <bos>


def test_the_plan_is_the_one_that_attribute_makes(folders: Folders, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[MemoryPlan] = []
    keep = trace.plan_memory
    monkeypatch.setattr(trace, "plan_memory", lambda *sizes: made.append(keep(*sizes)) or made[-1])
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "--json", "--memory", "64GB")
    assert outcome.code == 0, outcome.err
    work = made[0].work
    active = work.n_active / (5 * work.config.n_layers)
    planned = run("plan", "-t", folders.transcoder, "-p", PROMPT, "--active", active, "--memory", "64GB", "--json").json
    assert planned["tokens"] == 6
    assert planned["active_features"] == pytest.approx(work.n_active, abs=3)
    assert (planned["block_rows"], planned["keep_decoder_rows"], planned["keep_patterns"]) == (
        made[0].block_rows,
        True,
        True,
    )
    for phase, items in made[0].phases.items():
        for name, size in items.items():
            assert planned["phases"][phase][name] == pytest.approx(size, rel=0.5), (phase, name)


def test_the_plan_is_a_table_of_phases(folders: Folders, run: Run) -> None:
    text = run("plan", "-t", folders.transcoder, "-m", folders.model, "--tokens", 20, "--max-feature-nodes", 30).out
    assert "a layer and token are assumed" in text
    assert text.count("<- the peak") == 1
    for phase in ("run the model", "find active features", "read decoder rows", "compute edges", "make the graph"):
        assert phase in text


def test_no_weights_are_loaded(folders: Folders, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loads weights"))
    assert run("plan", "-t", folders.transcoder, "--tokens", 20).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", 100_000], "cannot be traced"),
        (["--tokens", 5, "-p", "the capital"], "not both"),
        ([], "say how long"),
        (["--tokens", 20, "--memory", "1MB"], "give it more memory"),
        (["--tokens", 20, "--memory", "much"], "a size such as 16GB"),
        (["--tokens", 20, "--active", 1e6], "expected 1 to"),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_planned_is_refused(folders: Folders, run: Run, options: list[object], message: str) -> None:
    outcome = run("plan", "-t", folders.transcoder, *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_too_little_memory_is_refused_before_the_work(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "-o", tmp_path / "g.pt", "--memory", "1MB")
    assert outcome.code == 2
    assert "may be used" in outcome.err
    assert not (tmp_path / "g.pt").exists()


def test_topk_dictionaries_say_how_many_features_are_active() -> None:
    from tests.support.tiny import tiny_transcoder

    topk = tiny_transcoder("clt", torch.float32, activation="topk")
    assert forecast.active_features(topk, None) == topk.activation(0).k
    assert forecast.active_features(topk, 1.5) == 1.5
    relu = tiny_transcoder("plt", torch.float32, activation="relu")
    assert forecast.active_features(relu, None) == min(forecast.ACTIVE_IF_UNKNOWN, relu.d_transcoder)


@pytest.mark.slow("takes 1.6 s")
def test_several_processes_write_one_graph(folders: Folders, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(f"{PROMPT}\na state containing Dallas\n")
    arguments = ["attribute", "-t", folders.transcoder, "--prompt-file", tmp_path / "prompts"]
    arguments += ["--max-feature-nodes", 20, "-o"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert run(*arguments, tmp_path / "one" / "g.safetensors").code == 0
    arguments += [tmp_path / "two" / "g.safetensors", "--json", "--device", "cpu"]
    ended = commands_together(2, *arguments, folder=tmp_path / "ranks")
    assert [each.code for each in ended] == [0, 0], ended
    assert [len(each.out.splitlines()) for each in ended] == [2, 0]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        one, two = (read_graph(tmp_path / folder / name) for folder in ("one", "two"))
        assert torch.equal(one.selected_features, two.selected_features)
        torch.testing.assert_close(two.edges.to_dense(), one.edges.to_dense(), rtol=1e-4, atol=1e-6)


def test_the_demos_prompt_is_planned_where_none_is_given(run: Run) -> None:
    assert run("plan", "--demo").out.startswith("9 tokens")
