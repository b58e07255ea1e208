"""`circuit-tracer heads`: what every head of a model does, as a table, a picture, JSON, and HeadVis's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import LanguageModelOptions
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.attention import HeadTable

WRITERS = {".json": "to_json", **dict.fromkeys((".png", ".svg", ".pdf"), "draw")}  # methods of HeadTable
Column = Literal[
    "induction",
    "previous_token",
    "duplicate_token",
    "self",
    "entropy",
    "distance",
    "distance_variance",
    "ov_copying",
    "ablation",
]
TITLES = {
    "previous_token": "previous",
    "duplicate_token": "duplicate",
    "distance_variance": "variance",
    "ov_copying": "copying",
}


@dataclass(frozen=True)
class Windows(options.Reading):
    """How the files of --data are read, and cut."""

    context_length: Annotated[
        int | None,
        typer.Option("--context-length", min=2, help="Tokens of a window that texts are cut into.  [default: 512]"),
    ] = None


def heads(
    *,
    chosen: LanguageModelOptions,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Text to read: files of text, JSONL, parquet or token ids; default: random tokens, said twice.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, options.text("-p", "--prompt", help="A text to read, instead of files. Repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of --data that are read.")] = 16384,
    reading: Windows,
    block: Annotated[
        int | None,
        typer.Option(
            "--block", min=2, help="Random tokens that are said twice.  [default: 32, or what the model holds]"
        ),
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="How many such sequences.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random tokens, and of --headvis.")] = 0,
    ablate: Annotated[
        str,
        typer.Option(
            "--ablate",
            metavar="HEADS",
            help="Heads whose effect on the loss of the random tokens' second copy is measured: so many of the highest "
            "induction scores, heads such as L5H1,L7H10, or all. A pass over these tokens a head: seconds for a few, "
            "minutes for all of a small model on a CPU. 0: none.",
        ),
    ] = "5",
    how: Annotated[
        Literal["zero", "mean"],
        typer.Option("--how", help="What stands in for an ablated head's output: zero, or its mean over tokens."),
    ] = "zero",
    sort: Annotated[Column, typer.Option("--sort", help="Column that the table is sorted by, highest first.")] = (
        "induction"
    ),
    ascending: Annotated[bool, typer.Option("--ascending", help="Lowest first.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="How many heads to show.")] = 15,
    output: Annotated[
        list[Path] | None,
        options.output("Write all heads (.json) or a picture (.png, .svg, .pdf; needs matplotlib). Repeatable."),
    ] = None,
    headvis: Annotated[
        Path | None,
        typer.Option("--headvis", help="Folder for what HeadVis and Neuronpedia read, {model}/headvis/{text}/ in it."),
    ] = None,
    model_id: Annotated[
        str | None,
        typer.Option("--model-id", help="The model's name on Neuronpedia, for --headvis; default: of its own name."),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="Tokens read at once; does not change the result.")
    ] = 2048,
    json: options.Json = False,
) -> None:
    """Diagnose attention heads: induction, copying and others.

    A table of every head's scores, and of what the loss is without a head. Needs no transcoders. The scores are HeadVis's;
    docs/how-to/heads.md has the formulas.
    """
    from circuit_tracer.files import require_writable_file, require_writable_folder

    wanted = _ablated(ablate)
    if data is not None and prompt:
        raise InputError("--data and -p both say what is read; give one of them")
    for path in output or ():
        if path.suffix not in WRITERS:
            raise InputError(f"-o {path}: end it in {', '.join(WRITERS)}")
        require_writable_file(path)
    if headvis is not None:
        require_writable_folder(headvis)
    from circuit_tracer.attention import RandomTokens, diagnose_heads, write_headvis

    random = RandomTokens(block, sequences, seed)
    model, tokenizer = chosen.open()
    text = prompt or (None if data is None else _documents(data, reading, tokenizer))
    with told() as progress:
        table = diagnose_heads(
            model,
            text,
            tokenizer=tokenizer,
            prepend_bos=chosen.bos,
            context_length=reading.context_length,
            max_tokens=None if data is None else tokens,
            random=random,
            ablate=wanted,
            how=how,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        files = [getattr(table, WRITERS[path.suffix])(path) for path in output or ()]
        if headvis is not None:
            named = None if data is None else Path(data).name
            given = {"tokenizer": tokenizer, "dataset": named, "model_id": model_id, "seed": seed}
            files.append(write_headvis(table, model, headvis, **given, progress=progress))
    if json:
        typer.echo(options.dump({**table.to_dict(), "files": [str(path) for path in files]}))
    else:
        typer.echo(_text(table, sort, ascending, top, files))


def _ablated(text: str) -> int | Literal["all"] | list[tuple[int, int]]:
    """How many, which, or all."""
    if text == "all":
        return "all"
    if text.isdecimal():
        return int(text)
    from circuit_tracer.models.indices import parse_head

    try:
        return [parse_head(item) for item in text.split(",")]
    except InputError as error:
        raise InputError(f"--ablate {text!r}: write how many heads, some such as L5H1,L7H10, or all") from error


def _documents(data: str, reading: Windows, tokenizer: Any) -> Iterator[Any]:
    """Text or token ids, file by file."""
    from circuit_tracer.text.kinds import kind_of_file, open_documents
    from circuit_tracer.text.source import TextSource
    from circuit_tracer.text.special import SpecialTokens

    source = TextSource(reading.data_kind or kind_of_file(data), data, reading.field)
    return (document for document, _ in open_documents(source, SpecialTokens.of(tokenizer).end).read(None))


def _text(table: HeadTable, sort: str, ascending: bool, top: int, files: list[Path]) -> str:
    skipped = f", {table.skipped} too short" if table.skipped else ""
    lines = [
        f"model       {table.model}: {table.n_layers} layers of {table.n_heads} heads",
        f"text        {table.text}: {len(table.sequences)} sequences{skipped}, {table.n_tokens} tokens, of which "
        f"{table.repeated} stood earlier in theirs",
    ]
    if table.losses is not None:
        lines.append(
            f"loss        {table.losses['first copy']:.3f} on the first copy of random tokens, "
            f"{table.losses['second copy']:.3f} on the second; ablation ({table.ablated}): "
            "what the latter gains without a head"
        )
    lines += ["", f"{'head':<8}" + "".join(f"{TITLES.get(name, name):>10}" for name in table.scores)]
    for row in table.rows(sort, ascending)[:top]:
        values = [row[name] for name in table.scores]
        shown = "".join(f"{'-':>10}" if value is None else f"{value:>10.3f}" for value in values)
        lines.append(f"L{row['layer']}H{row['head']}".ljust(8) + shown)
    return "\n".join(lines + [f"wrote       {path}" for path in files])
