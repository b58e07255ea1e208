"""What is written from the code says what the code says: pages of commands, and llms.txt."""

from __future__ import annotations

from circuit_tracer.cli.main import COMMANDS
from docs import generate
from docs.generate import commands
from docs.generate.llms import navigation
from docs.hooks import paths, with_commands


def test_nothing_is_stale() -> None:
    assert generate.stale() == [], "run python -m docs.generate"


def test_every_command_and_option_has_its_line() -> None:
    written = commands.pages()
    assert {f"{row.name}.md" for row in COMMANDS} | {"index.md"} == set(written)
    page = written["attribute.md"]
    assert "| `--max-n-logits` | whole number, at least 1 | `10` | Most targets to explain. |" in page
    assert "| `-o` `--output` `--graph-output-path` | path |" in page
    assert "| `--dtype` | `float32`, `bfloat16`," in page
    assert "| `-m` `--model` | text | what the transcoders name | Hugging Face id, folder or .gguf file. |" in page
    assert "| `PROMPTS` | text | **required** |" in written["run.md"]
    assert "## probe fit" in written["probe.md"]
    assert "| `--run.tokens` | a whole number, at least 1 | **required** | Tokens to train on. |" in written["train.md"]


def test_every_command_stands_in_the_site() -> None:
    shown = set(paths(with_commands(navigation())))
    assert {f"reference/commands/{row.name}.md" for row in COMMANDS} <= shown
