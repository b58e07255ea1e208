"""`circuit-tracer heads`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from circuit_tracer.attention import SCORES, RandomTokens, diagnose_heads
from circuit_tracer.cli.heads import Column
from tests.support.command import Folders, Run

SMALL = ("--device", "cpu", "--block", 9, "--sequences", 2)


def test_text(run: Run, folders: Folders) -> None:
    outcome = run("heads", "-m", folders.model, *SMALL, "--sort", "previous_token", "--top", 4, "--ascending")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "model       model: 3 layers of 4 heads"
    assert "2 times 9 random tokens, said twice (seed 0): 2 sequences, 38 tokens, of which 18" in lines[1]
    assert lines[2].startswith("loss ")
    assert lines[4].split() == [
        "head", "induction", "previous", "duplicate", "self", "entropy", "distance", "variance", "copying", "ablation",
    ]  # fmt: skip
    assert len(lines) == 5 + 4
    previous = [float(line.split()[2]) for line in lines[5:]]
    assert previous == sorted(previous)


def test_json_is_what_python_says(run: Run, folders: Folders) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = run("heads", "-m", folders.model, *SMALL, "--seed", 7, "--ablate", "L0H1,L2H3", "--how", "mean", "--json")
    assert outcome.code == 0, outcome.err
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders.model), AutoTokenizer.from_pretrained(folders.model)
    table = diagnose_heads(
        model.eval(), tokenizer=tokenizer, random=RandomTokens(9, 2, 7), ablate=[(0, 1), (2, 3)], how="mean"
    )
    assert outcome.json == {**table.to_dict(), "files": []}
    assert [(row["layer"], row["head"]) for row in outcome.json["heads"] if row["ablation"] is not None] == [
        (0, 1),
        (2, 3),
    ]


def test_files_of_text(run: Run, folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("the capital of Texas is Austin the capital of France is Paris " * 20)
    files = ("-o", tmp_path / "h.json", "-o", tmp_path / "h.svg", "--headvis", tmp_path / "vis", "--model-id", "tiny")
    given = ("--data", text, "--tokens", 100, "--context-length", 30, "--ablate", 0)
    outcome = run("heads", "-m", folders.model, "--device", "cpu", *given, *files, "--verbose")
    assert outcome.code == 0, outcome.err
    assert "4 sequences, 100 tokens" in outcome.out
    assert "loss " not in outcome.out
    written = json.loads((tmp_path / "h.json").read_text())
    assert (written["n_tokens"], len(written["heads"]), written["losses"]) == (100, 12, None)
    assert (tmp_path / "h.svg").stat().st_size > 1000
    config = json.loads((tmp_path / "vis/tiny/headvis/text.txt/config.json").read_text())
    assert (config["model_name"], config["pipeline_config"]["seq_len"]) == ("model", 30)


def test_prompts_and_the_demo(run: Run) -> None:
    outcome = run("heads", "--demo", "-p", "Austin is in Texas and Austin", "-p", "Dallas", "--ablate", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["n_sequences"] == 2
    assert outcome.json["losses"]["second copy"] > 0


@pytest.mark.few
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the model with -m, or use --demo"),
        (("-m", "M", "--demo"), "(not both)"),
        (("--demo", "--revision", "v1"), "leave it out"),
        (("-m", "./nowhere", "--device", "cpu"), "nowhere"),
        (("--demo", "--device", "abacus"), "device 'abacus'"),
        (("--demo", "--data", "text.txt", "-p", "x"), "give one of them"),
        (("--demo", "--data", "nowhere.txt"), "nowhere.txt"),
        (("--demo", "--data", "text.odt"), "--data-kind"),
        (("--demo", "--ablate", "most"), "L5H1,L7H10"),
        (("--demo", "--ablate", "1.2,L3H4"), "L5H1,L7H10"),
        (("--demo", "--ablate", "L9H0"), "there is no head L9H0"),
        (("--demo", "--block", "4000"), "a block of 4000"),
        (("--demo", "--sort", "depth"), "depth"),
        (("--demo", "-o", "heads.txt"), "end it in .json, .png"),
        (("--demo", "-p", "", "--no-bos"), "none of 1 texts has two tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("heads", *arguments)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert outcome.out == ""


def test_every_score_is_a_column_and_in_the_docs(run: Run) -> None:
    assert get_args(Column) == tuple(SCORES)
    docs = (Path(__file__).parents[2] / "docs" / "how-to" / "heads.md").read_text(encoding="utf-8")
    for name, score in SCORES.items():
        assert f"| `{name}` | `{score.headvis}` |" in docs
