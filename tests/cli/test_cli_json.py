"""--json: every command has it, says in a schema what it prints, and prints errors too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from circuit_tracer.cli.main import app
from circuit_tracer.cli.schemas import LINES, WITHOUT, schema
from tests.support.command import Folders, Run


def every() -> dict[str, Any]:
    """Each command by its words, those of a group that do something by themselves among them."""
    root = get_command(app)
    context = root.make_context("circuit-tracer", [], resilient_parsing=True)
    found = {}
    for name in root.commands:  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        if not below or command.invoke_without_command:
            found[name] = command
        found |= {f"{name} {each}": inner for each, inner in below.items()}
    return found


def test_every_command_takes_json_and_says_what_it_prints() -> None:
    commands = every()
    assert commands.keys() == LINES.keys() | WITHOUT.keys(), "a command has its row in cli/schemas.py"
    for name, command in commands.items():
        has = any("--json" in option.opts for option in command.params)
        assert has is (name not in WITHOUT), f"{name}: give it `json: options.Json = False`"


def test_each_schema_is_one() -> None:
    from jsonschema import Draft202012Validator

    for command in LINES:
        Draft202012Validator.check_schema(schema(command))
        assert "anyOf" in schema(command)


@pytest.mark.parametrize(
    ("arguments", "kind", "part", "code"),
    [
        (["prune", "none.safetensors"], "InputError", "none.safetensors", 2),
        (["prune"], "UsageError", "Missing argument", 2),
        (["prune", "x", "--no-such-option"], "UsageError", "No such option", 2),
        (["attribute", "--demo", "-p", "a", "--max-n-logits", "0"], "UsageError", "--max-n-logits", 2),
        (["info", "x", "-m", "y", "--select", "a", "--select", "b"], "InputError", "given twice", 2),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_errors_are_lines_too(run: Run, tmp_path: Path, arguments: list[str], kind: str, part: str, code: int) -> None:
    outcome = run(*arguments, "--json")
    assert outcome.code == code
    (line,) = outcome.out.splitlines()
    found = json.loads(line)["error"]
    assert found["kind"] == kind
    assert part in found["message"]
    assert part in outcome.err, "people read it too"
    assert run(*arguments).out == ""


def test_failures_of_ours_are_lines_too(run: Run, traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr("circuit_tracer.graph.files.native.as_graph", fail)
    outcome = run("prune", traced, "--json")
    assert outcome.code == 1
    assert outcome.json["error"]["kind"] == "ZeroDivisionError"


def test_plans_and_settings_of_a_training_are_lines(run: Run, folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the capital of Texas is Austin")
    run_settings = ["--model.name", folders.model, "--data.path", tmp_path / "text.txt", "--run.out", tmp_path / "run"]
    printed = run("train", "gpt2", "--print-config", "--json", *run_settings)
    assert printed.code == 0, printed.err
    assert printed.json["run"]["out"] == str(tmp_path / "run")


def test_a_file_for_viewers_is_named_and_told(run: Run, traced: Path, tmp_path: Path) -> None:
    pruned = run("prune", traced, "--slug", "g", "--graph-file-dir", tmp_path, "--json")
    assert pruned.json["files"] == [str(tmp_path / "g.json")]
    assert run("info", tmp_path / "g.json", "--json").json["what"] == "graph file for viewers"


@pytest.mark.slow("the whole demo, and its feature pages")
def test_the_demo_is_told_in_a_line(run: Run, tmp_path: Path) -> None:
    found = run("demo", "-o", tmp_path, "--json")
    assert found.code == 0, found.err
    assert sorted(found.json["files"]) == sorted(str(file) for file in tmp_path.glob("demo.*"))
    assert {sentence["status"] for sentence in found.json["story"]["sentences"]} >= {"holds"}
    assert "wrote" in found.err
    other = run("demo", "-p", "after Monday comes", "-o", tmp_path, "--json").json
    assert other["slug"] == "demo-2"
    assert {Path(file).stem for file in other["files"]} == {"demo-2"}
