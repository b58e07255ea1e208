"""The line behind a command that names the next one: each step of the table is a command line that parses."""

from __future__ import annotations

import inspect
import pty
import string
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from circuit_tracer.cli.main import app
from circuit_tracer.cli.next_steps import EXAMPLE, FLAGS, STEPS, Step, next_step
from tests.support.command import Run

# Commands that end with what was asked for, that go on until they are stopped, or that write lines for other programs.
WITHOUT = {"serve", "start-server", "mcp", "upload", "features export", "monitor watch", "demo features"}
SAID = {"kind", "out", "overridden"}  # by commands of their results
MADE = {"written", "stem", "first_prompt", "dictionary", "example", "demo_prompt", "new_graph"}
VALUES = {"output": "out.safetensors", "graph": "a graph.safetensors", "config": "smollm2-135m", "prompt": "it's"}
DICTIONARY, MODEL, DEMO = ["-t", "a folder", "-m", "model"], ["-m", "model"], ["--demo"]


def commands(group: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    group = typer.main.get_command(app) if group is None else group
    for name in group.commands:
        one, called = group.commands[name], f"{path} {name}".strip()
        if hasattr(one, "commands"):
            yield from commands(one, called)
        if not hasattr(one, "commands") or one.invoke_without_command:
            yield called, one


BY_NAME = dict(commands())


def require_parses(words: list[str]) -> None:
    """As far as a command goes before it does anything: values of its options, and what they say together."""
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in BY_NAME)
    context = BY_NAME[name].make_context(name, words[len(name.split()) :])
    function = inspect.unwrap(BY_NAME[name].callback)
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(kind := parameter.annotation):
            kind(**{each.name: context.params[each.name] for each in fields(kind)})


def given_for(step: Step) -> dict[str, Any]:
    """Values for which a step is the one."""
    named = {name for _, name, _, _ in string.Formatter().parse(step.step) if name} - FLAGS.keys()
    own = {each.name for each in BY_NAME[step.after].params} & {*named, "output", "graph"}
    given: dict[str, Any] = {name: VALUES.get(name, f"the {name}") for name in own if name in {*named, *step.only}}
    given |= {name: f"the {ending or 'thing'}" for name, ending in step.only.items() if name not in MADE}
    if "output" in named | step.only.keys() and "output" not in step.only:
        given["output"] = "out.safetensors"
    if "first_prompt" in named:
        given |= {"prompt": ["a text"], "transcoder_set": "a folder"}
    if "written" in named | step.only.keys():
        given["graph"] = "a graph.safetensors"
    return given | {name: f"the {name}" for name in named & SAID}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.after} - {step.step}")
def test_every_step_parses(step: Step) -> None:
    named = {name for _, name, _, _ in string.Formatter().parse(step.step) if name}
    assert named <= {each.name for each in BY_NAME[step.after].params} | SAID | MADE | FLAGS.keys()
    of_model = MODEL if step.after in ("heads", "info") else DICTIONARY
    for flags in (of_model, DEMO) if "{model}" in step.step and step.after != "info" else (of_model,):
        given = given_for(step) | ({"demo": True} if flags is DEMO else {})
        if "demo" in step.only and flags is not DEMO:
            continue
        words = next_step(step.after, given, {"model": flags, "edits": ["--scale", "1/45@6=0"]})
        assert words is not None
        require_parses(words)


def test_every_command_has_a_step_or_is_known_to_have_none() -> None:
    assert {step.after for step in STEPS} | WITHOUT >= BY_NAME.keys()
    assert not {step.after for step in STEPS} & WITHOUT


@pytest.mark.parametrize(
    ("after", "given", "expected"),
    [
        ("attribute", {"output": Path("g.safetensors")}, "group g.safetensors -t d"),
        ("attribute", {"output": Path("x/g.pt")}, "group x/g.pt -t d -o x/g.safetensors"),
        ("attribute", {"output": Path("g.pt"), "graph_file_dir": Path("gs")}, "serve --graph-file-dir gs -t d"),
        ("attribute", {"output": Path("g.pt"), "prompt_file": Path("p")}, None),
        ("group", {"graph": Path("g.pt"), "output": Path("h.safetensors")}, "story h.safetensors -t d"),
        ("info", {"what": "m.gguf", "kind": "model"}, f"attribute -m m.gguf -t neurons -p {EXAMPLE} -o graph-2.safetensors"),
        ("steer", {"prompt": "a b", "demo": True}, "attribute -t d -p a b -o graph-2.safetensors"),
        ("serve", {"graph_file_dir": Path("gs")}, None),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_the_step_names_the_files(
    after: str, given: dict[str, Any], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.safetensors").touch()
    words = next_step(after, given, {"model": ["-t", "d"]})
    assert (None if words is None else " ".join(words)) == expected


def test_it_stands_behind_a_command_on_a_terminal_and_not_in_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train", "smollm2-135m", "--print-config"]
    piped = run(*command)
    assert (piped.err, "next:" in piped.out) == ("", False)
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        reader = ThreadPoolExecutor(1).submit(_all_of, ours)
        app(command, standalone_mode=False)
    assert reader.result().splitlines()[-2:] == ["", "next: circuit-tracer train smollm2-135m"]


def _all_of(terminal: int) -> str:
    shown = b""
    with suppress(OSError), open(terminal, "rb", buffering=0) as file:  # on Linux the end is an error
        while part := file.read(1 << 16):
            shown += part
    return shown.decode()


@pytest.mark.slow("three commands on the demo's model")
def test_the_steps_of_a_walk_run_as_they_stand(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["attribute", "--demo", "-p", "the capital of Texas is", "-o", "g.safetensors"]
    walked = []
    for _ in range(3):
        assert (outcome := run(*words)).code == 0, outcome.err
        walked.append(words[0])
        context = BY_NAME[words[0]].make_context(words[0], words[1:])
        words = next_step(words[0], context.params, {"model": DEMO}) or []
    assert walked == ["attribute", "group", "story"]
    assert words == ["view", "g.safetensors"]
