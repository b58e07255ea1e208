"""Options that several commands share, alone and in groups, and how results are printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from circuit_tracer.errors import InputError
from circuit_tracer.sizes import USUAL_ROWS


def output(help: str, *also: str) -> Any:
    """The option that says where results go; also: circuit-tracer's spelling of it."""
    return typer.Option("-o", "--output", *also, help=help)


def text(*names: str, help: str, **settings: Any) -> Any:
    """An option whose value a tokenizer reads."""
    return typer.Option(*names, help=help, callback=_require_text, **settings)


def _require_text(value: Any) -> Any:
    for each in value if isinstance(value, list) else [value or ""]:
        if any("\ud800" <= character <= "\udfff" for character in each):  # what a shell's other bytes become
            raise InputError(f"{each!r} holds bytes that are not UTF-8; write it in UTF-8")
    return value


Slug = Annotated[str | None, typer.Option("--slug", help="Name of the viewer's file, {slug}.json.")]
GraphFileDir = Annotated[
    Path | None, typer.Option("--graph-file-dir", help="Folder for the viewer's files; made if needed.")
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a graph of that name; what was made by hand moves to the new one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, one object a line, and nothing else.")]
FeatureNames = Annotated[
    Path | None, typer.Option("--names", help="What features are called: labels.json, or a folder of features.")
]


@dataclass(frozen=True)
class Thresholds:
    """How much of a graph is kept."""

    node_threshold: Annotated[
        float,
        typer.Option("--node-threshold", min=0.0, max=1.0, help="Keep nodes that hold this share of the influence."),
    ] = 0.8
    edge_threshold: Annotated[
        float,
        typer.Option("--edge-threshold", min=0.0, max=1.0, help="Keep edges that hold this share of the influence."),
    ] = 0.98


@dataclass(frozen=True)
class Pruning(Thresholds):
    """How a graph is pruned."""

    policy: Annotated[
        Literal["circuit-tracer", "paper"],
        typer.Option(
            "--policy", help="How to prune: as circuit-tracer does, or as the paper does (error nodes always stay)."
        ),
    ] = "circuit-tracer"


@dataclass(frozen=True)
class Limits:
    """How much a trace computes, and what it may hold."""

    max_n_logits: Annotated[int, typer.Option("--max-n-logits", min=1, help="Most targets to explain.")] = 10
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Most rows in flight; does not change the result.")
    ] = 256
    max_feature_nodes: Annotated[
        int | None,
        typer.Option(
            "--max-feature-nodes",
            min=0,
            help="Features that get a row of their own; 0: all, of neurons the usual 2,000.  [default: 7500; of neurons: 2000]",
        ),
    ] = None
    offload: Annotated[
        Literal["cpu", "disk"] | None,
        typer.Option("--offload", help="Read decoder rows again instead of keeping them."),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="What the process may hold in all, such as 16GB; default: what is free."
        ),
    ] = None

    def arguments(self, neurons: bool) -> dict[str, Any]:
        """Those that `attribute` takes, as it takes them. neurons: those are the nodes, and it has a number of its own."""
        usual = None if neurons else USUAL_ROWS
        return {**vars(self), "max_feature_nodes": usual if self.max_feature_nodes is None else self.max_feature_nodes}


@dataclass(frozen=True)
class Prompting:
    """How prompts are read, and what of them is explained and kept."""

    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is a user message, a .json file of messages, or a JSON list of them."),
    ] = False
    chat_option: Annotated[
        list[str] | None,
        text(
            "--chat-option",
            metavar="NAME=VALUE",
            help="Argument of the chat template, such as enable_thinking=false. Repeatable.",
        ),
    ] = None
    position: Annotated[int, typer.Option("--position", help="Where targets are read; -1 is the last token.")] = -1
    desired_logit_prob: Annotated[
        float,
        typer.Option(
            "--desired-logit-prob", min=0.0, max=1.0, help="Explain targets until this probability is covered."
        ),
    ] = 0.95
    zero_positions: Annotated[
        str | None,
        typer.Option(
            "--zero-positions", help="Positions without features, such as 0,1, or none; default: circuit-tracer's rule."
        ),
    ] = None
    keep_edge_mass: Annotated[
        float | None,
        typer.Option(
            "--keep-edge-mass",
            help="Share of each row's mass that its edges keep, such as 0.95; default: 1, or 0.98 beyond 512 tokens.",
        ),
    ] = None
    max_residual: Annotated[
        float | None,
        typer.Option(
            "--max-residual",
            min=0.0,
            help="Largest relative residual of a row; default: what is promised, 1e-5 in float32, 2e-2 in bfloat16.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Those that `attribute` takes, as it takes them."""
        return {
            "position": self.position,
            "desired_logit_prob": self.desired_logit_prob,
            "zero_positions": integers(self.zero_positions, "--zero-positions"),
            "keep_edge_mass": self.keep_edge_mass,
            "max_residual": self.max_residual,
        }


@dataclass(frozen=True)
class Reading:
    """How the files of --data are read."""

    data_kind: Annotated[
        Literal["text", "jsonl", "parquet", "tokens"] | None,
        typer.Option("--data-kind", help="What the files of --data are; default: by their ending."),
    ] = None
    field: Annotated[str, typer.Option("--field", help="Field or column of --data that holds the text.")] = "text"
    context_length: Annotated[
        int | None, typer.Option("--context-length", min=2, help="Tokens of a sequence.  [default: 256]")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """As readers take them."""
        return {"kind": self.data_kind, "field": self.field, "context_length": self.context_length}


def integers(text: str | None, option: str) -> list[int] | None:
    """Integers of a comma-separated list; [] for "none"; None stays None."""
    if text is None or text.strip().lower() == "none":
        return None if text is None else []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}; expected positions such as 0 or 0,1,2, or none") from error


def token(text: str) -> str | int:
    """A token by its text, or by its id in the form id:123."""
    name, separator, number = text.partition(":")
    return int(number) if name == "id" and separator and number.isdecimal() else text


@contextmanager
def interruption(kept: str) -> Iterator[None]:
    """Inside, Ctrl-C says what was kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(kept) from error


@contextmanager
def only_json(json: bool) -> Iterator[None]:
    """Inside, what is printed for people goes to standard error, if JSON was asked for."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


def say_written(files: Iterable[str | Path], json: bool) -> None:
    """Print which files were written."""
    names = [str(file) for file in files]
    typer.echo(dump({"files": names}) if json else "\n".join(f"wrote {name}" for name in names))


def dump(value: Any) -> str:
    """One line of JSON; numbers that are not finite become null."""
    import json

    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def means_a_file(text: str) -> bool:
    """Whether a graph file is meant, no folder or hub id: something else than a folder is there, or the ending says so."""
    from circuit_tracer.graph.files.formats import SUFFIXES

    path = Path(text)
    return not path.is_dir() and (os.path.lexists(path) or path.suffix in SUFFIXES)
