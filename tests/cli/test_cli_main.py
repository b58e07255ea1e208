"""The frame of the command line: help without torch, versions, exit codes, tracebacks, interruption."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from circuit_tracer.attribution.expansion import Expansion
from circuit_tracer.cli import frame
from circuit_tracer.cli.main import COMMANDS
from circuit_tracer.errors import FileFormatError
from tests.support.command import Folders, Run


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([row.name] for row in COMMANDS),
        *(["demo", name] for name in ("train", "features")),
        *(["features", name] for name in ("build", "label", "fetch-labels", "export")),
    ],
    ids=lambda command: "-".join(command) or "circuit-tracer",
)
def test_every_command_explains_itself(run: Run, command: list[str]) -> None:
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out
    assert "--debug" in outcome.out or command in (["features"], ["probe"], ["monitor"])


def test_help_shows_commands_by_group_and_option_names_whole(run: Run) -> None:
    text = run("--help").out
    titles = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", *dict.fromkeys(row.group for row in COMMANDS)]
    assert [line.split()[0] for line in text[text.index("Trace:") :].splitlines() if line.startswith("  ")] == [
        row.name for row in COMMANDS
    ]
    assert "-o, --output, --graph-output-path <path>\n" in run("attribute", "--help").out


def test_help_says_of_each_command_what_it_says_itself_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = frame._Rows(COMMANDS)
    own = {name: made[name].get_short_help_str(60) for name in made}
    functions = [row for row in COMMANDS if not row.where.endswith(":app")]
    monkeypatch.setattr(frame, "_command", lambda row: pytest.fail(f"{row.name} was made for the help of all"))
    assert {row.name: frame._in_short(row, frame._Rows(COMMANDS), 60) for row in functions} == {
        row.name: own[row.name] for row in functions
    }
    assert len(functions) > 20
    assert all(own.values())


def test_help_does_not_load_torch() -> None:
    script = "import sys; sys.argv = ['circuit-tracer', 'attribute', '--help']\n"
    script += "from circuit_tracer.cli.main import main\n"
    script += "try: main()\nexcept SystemExit: pass\n"
    script += "heavy = {'torch', 'transformers', 'numpy', 'networkx', 'fastapi', 'starlette'} & set(sys.modules)\n"
    script += "assert not heavy, heavy"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - started < 3, "0.2 s on an idle machine; the bound is for busy ones"


@pytest.mark.parametrize(
    "arguments",
    [
        ["attribute", "-t", "one", "-p", "x", "--transcoder_set", "two"],
        ["evaluate", "-t", "one", "--data", "x", "-t", "two"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_option_given_twice_is_refused(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "-t / --transcoder" in outcome.err
    assert "is given twice, and takes one value: leave one of them out" in outcome.err


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("circuit-tracing 0.")


def test_unknown_options_and_commands_exit_2(run: Run) -> None:
    assert run("attribute", "--no-such-flag").code == 2
    assert run("no-such-command").code == 2


def _raise(error: BaseException) -> object:
    def replacement(*_: object, **__: object) -> None:
        raise error

    return replacement


@pytest.mark.parametrize(
    ("error", "code"),
    [(FileFormatError("a bad file"), 2), (ZeroDivisionError("a slip"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(run: Run, traced: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    monkeypatch.setattr("circuit_tracer.graph.files.native.as_graph", _raise(error))
    outcome = run("prune", traced)
    assert outcome.code == code
    assert str(error) in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(run: Run, traced: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr("circuit_tracer.graph.files.native.as_graph", _raise(ZeroDivisionError("a slip")))
    arguments = ["--debug", "prune", traced] if place == "before" else ["prune", traced, "--debug"]
    outcome = run(*arguments)
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_an_interrupted_trace_is_saved(
    folders: Folders, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Expansion, "expand", interrupt)
    path = tmp_path / "g.safetensors"
    outcome = run("attribute", "-t", folders.transcoder, "-p", "the capital of Texas is", "-o", path)
    assert outcome.code == 130
    assert path.is_file()
    assert "warning: interrupted" in outcome.err
    assert "--resume goes on" in outcome.err
    (tmp_path / "prompts").write_text("the capital\na state\n")
    outcome = run("attribute", "-t", folders.transcoder, "--prompt-file", tmp_path / "prompts", "--json")
    assert outcome.code == 130
    assert len(outcome.out.splitlines()) == 2
    assert '"Interrupted"' in outcome.out.splitlines()[1]


def _demo(monkeypatch: pytest.MonkeyPatch, **names: object) -> None:
    """A stand-in for the embedded demo, whose weights these tests do not need."""
    monkeypatch.setitem(sys.modules, "circuit_tracer.demo.show", cast(ModuleType, SimpleNamespace(**names)))


def test_demo_calls_the_demo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    _demo(monkeypatch, main=lambda *arguments: calls.append(arguments))
    assert run("demo", "-p", "a prompt", "-o", "folder", "--swap", "Oregon").code == 0
    assert calls == [(Path("folder"), "a prompt", "Oregon")]


def test_attribute_on_the_demo_model(run: Run) -> None:
    outcome = run("attribute", "--demo", "-p", "the capital of Texas is", "--json")
    assert outcome.code == 0, outcome.err
    assert run("attribute", "--demo", "-p", "x", "--json", "--device", "meta").code == 2


def test_demo_train_uses_the_shipped_seeds_unless_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, int]] = []
    monkeypatch.setattr("circuit_tracer.demo.recipe.train", lambda folder, **seeds: calls.append(seeds))
    assert run("demo", "train", "-o", "folder").code == 0
    assert run("demo", "train", "-o", "folder", "--seed", 3, "--transcoder_seed", 4).code == 0
    assert calls == [{}, {"seed": 3, "transcoder_seed": 4}]


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--labels", "x" * 5000, "File name too long"),
        ("--slug", "\udcff", "cannot name a file"),
        ("--slug", "x" * 300, "at most 200"),
        ("-p", "hi \udcff", "not UTF-8"),
    ],
    ids=["long path", "slug of bytes", "long slug", "bytes that are no text"],
)
def test_what_names_no_file_or_is_no_text_is_said(run: Run, tmp_path: Path, option: str, value: str, part: str) -> None:
    given = {"-p": "the capital", "--slug": "a", "--graph-file-dir": str(tmp_path), option: value}
    outcome = run("attribute", "--demo", *(each for pair in given.items() for each in pair))
    assert outcome.code == 2
    assert part in outcome.err
    assert "failure of ours" not in outcome.err
