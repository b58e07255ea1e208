"""What a shell shows after <TAB>, through the protocol that the installed scripts speak; and the scripts themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuit_tracer.cli.completion import DICTIONARIES, SITES, graphs, words
from circuit_tracer.interventions.patching.patching import SITES as PATCHED
from circuit_tracer.transcoders.neurons import NEURONS
from circuit_tracer.transcoders.references import ALIASES

SCRIPT = """
import sys
from circuit_tracer.cli.main import main
try: main()
finally:
    heavy = {'torch', 'transformers', 'numpy', 'networkx'} & set(sys.modules)
    assert not heavy, heavy
"""


def shell(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def completed(line: str) -> list[str]:
    words = line.split(" ")
    return shell(_CIRCUIT_TRACER_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()


@pytest.mark.few
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("circuit-tracer att", ["attribute"]),
        ("circuit-tracer p", ["plan", "prune", "probe", "patch", "push"]),
        ("circuit-tracer attribute --gra", ["--graph-output-path", "--graph-file-dir"]),
        ("circuit-tracer attribute --demo --dt", ["--dtype"]),
        ("circuit-tracer attribute --dtype bf", ["bfloat16", "bf16"]),
        ("circuit-tracer features bu", ["build"]),
        ("circuit-tracer train --pl", ["--plan"]),
        ("circuit-tracer train smo", ["smollm2-135m"]),
    ],
)
def test_tab(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("g.safetensors", "g.json", "g.txt", ".g.pt"):
        (tmp_path / name).touch()
    assert graphs("") == graphs("g") == ["g.json", "g.safetensors"]
    assert graphs(f"{tmp_path}/g.s") == [f"{tmp_path}/g.safetensors"]
    (tmp_path / "graphs").mkdir()
    assert graphs("g") == graphs("nowhere/") == []  # the shell goes into folders by itself
    assert words("one", "two")("") == []  # and shows files
    assert words("resid", "mlp_out", several=True)("resid,m") == ["resid,mlp_out"]
    assert {*DICTIONARIES} == {NEURONS, *ALIASES}
    assert {*SITES} == {*PATCHED, "none"}


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_scripts_are_shown_and_installed(tmp_path: Path, name: str) -> None:
    # the option takes the shell's name where it cannot be seen who called
    own = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path), "ZDOTDIR": ""}
    script = shell("--show-completion", name, **own)
    assert "_CIRCUIT_TRACER_COMPLETE" in script
    assert "circuit-tracer" in script
    said = shell("--install-completion", name, **own)
    assert f"{name} completion installed in" in said
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_CIRCUIT_TRACER_COMPLETE" in text for text in written)
