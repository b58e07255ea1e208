"""What is written from code and records says what they say: pages of commands, llms.txt, results."""

from __future__ import annotations

import re

from benchmarks import readme
from benchmarks.common.places import RESULTS
from benchmarks.tables.pages import PAGES
from circuit_tracer.cli.main import COMMANDS
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.refused import REFUSED
from docs import generate
from docs.generate import architectures, commands
from docs.generate.llms import navigation
from docs.hooks import paths, with_commands
from tests.support.code_blocks import PAGES as PAGES_OF_DOCS
from tests.support.code_blocks import ROOT, blocks


def test_nothing_is_stale() -> None:
    assert generate.stale() == [], "run python -m docs.generate"


def test_every_command_and_option_has_its_line() -> None:
    written = commands.pages()
    assert {f"{row.name}.md" for row in COMMANDS} | {"index.md"} == set(written)
    page = written["attribute.md"]
    assert "| `--max-n-logits` | Most targets to explain. | whole number, at least 1 | `10` |" in page
    assert "| `-o` `--output` `--graph-output-path` | Graph file: " in page
    assert "| `float32`, `bfloat16`," in page
    assert "| `-m` `--model` | Hugging Face id, folder or .gguf file. | text | what the transcoders name |" in page
    assert "or its address. | text | **required** |" in written["run.md"]
    assert "## probe fit" in written["probe.md"]
    assert "| `--run.tokens` | Tokens to train on. | a whole number, at least 1 | **required** |" in written["train.md"]


def test_every_architecture_has_its_place() -> None:
    entered = [each for types in architectures.FAMILIES.values() for each in types]
    assert len(entered) == len(set(entered))
    read, refused = "\n".join(architectures.read()), "\n".join(architectures.refused())
    assert {each for each in ARCHITECTURES if f"`{each}`" not in read} == set()
    assert {each for each in REFUSED if f"`{each}`" not in refused} == set()
    assert "| DeepSeek V2, V3 | `deepseek_v2`, `deepseek_v3`, `deepseek_v32` | values out of a latent |" in read
    assert "| OPT | `opt` | learned positions; only with `do_layer_norm_before: true` |" in read
    assert "attention and MLP side by side (`phi`)" in read


def test_every_command_stands_in_the_site() -> None:
    shown = set(paths(with_commands(navigation())))
    assert {f"reference/commands/{row.name}.md" for row in COMMANDS} <= shown


def test_results_say_what_the_records_say() -> None:
    assert readme.stale() == [], "run python -m benchmarks.readme"


def test_every_record_has_its_place() -> None:
    """But for comparisons of two commits, which are about neither."""
    placed = {section.record for page in PAGES for section in page.sections} | {"doubts"}
    assert {path.stem for path in RESULTS.glob("*.json")} - {"checkouts"} <= placed


# of other programs, and patterns
NO_OPTIONS = {"--signal", "--section.key", "--SECTION.KEY"}


def test_options_named_in_sentences_exist() -> None:
    tables = [line.split(" | ")[0] for text in commands.pages().values() for line in text.splitlines()]
    there = {_same(name) for first in tables for name in re.findall(r"`(--[\w.-]+)`", first)}
    assert len(there) > 200
    for page in PAGES_OF_DOCS:
        text = page.read_text(encoding="utf-8")
        for block in blocks(page):
            text = text.replace(block.text, "")
        for name in set(re.findall(r"`(--[\w.-]+\w)[^`]*`", text)) - NO_OPTIONS:
            assert _same(name) in there, f"{page.relative_to(ROOT)}: no command has {name}"


def _same(name: str) -> str:
    """`--max_n_logits` and `--max-n-logits` are the same option."""
    return name.replace("_", "-")
