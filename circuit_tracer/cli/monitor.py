"""`circuit-tracer monitor`: watch a stream of texts with probes and thresholds of features; set thresholds on negatives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.frame import add, new_app
from circuit_tracer.cli.probe import SUFFIX, ReadModel
from circuit_tracer.cli.serve import chosen_labels
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.probes.incoming import Incoming
    from circuit_tracer.probes.monitor import Monitor

app = new_app(help="Watch a stream of texts with probes: flags, or thresholds for a wished rate.", no_args_is_help=True)


@dataclass(frozen=True)
class Texts:
    """How a stream is read."""

    plain: Annotated[bool, typer.Option("--plain", help="Each line is a text by itself, no JSON.")] = False
    field: Annotated[str, typer.Option("--field", help="Field of a line that holds the text.")] = "text"
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Pass over so many lines, or files; -o is then appended to.")
    ] = 0

    def read(self, source: str) -> Iterator[Incoming]:
        """The texts of a file, a folder or standard input."""
        from circuit_tracer.probes.incoming import read_texts_of

        return read_texts_of(source, sys.stdin.buffer, self.plain, self.field, self.skip)


@dataclass(frozen=True)
class Watch:
    """What is watched for, and how much is read at once."""

    probe: Annotated[
        list[Path] | None, typer.Option("--probe", help="Probe file, or a folder of them. Repeatable.")
    ] = None
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", metavar="L/F>X", help="Flag tokens where feature F of layer L is above X. Repeatable."
        ),
    ] = None
    ahead: Annotated[
        int, typer.Option("--ahead", min=1, help="Texts read before the first is answered; 1: each at once.")
    ] = 256
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="Most tokens in flight; does not change the result.")
    ] = 2048
    window: Annotated[
        int | None,
        typer.Option("--window", min=16, help="Most tokens of a pass; longer texts are cut.  [default: the context]"),
    ] = None
    top_features: Annotated[
        int, typer.Option("--top-features", min=0, help="Features named for each flag, of the dictionary of -t.")
    ] = 5

    def monitor(self, chosen: ReadModel) -> Monitor:
        """Probes first, since a wrong one is found sooner than a model is loaded."""
        from circuit_tracer.probes.monitor import Monitor, Watching, feature_watch, named_probes

        probes = [*named_probes(self.probe or ()), *map(feature_watch, self.feature or ())]
        if not probes:
            raise InputError("say what to watch for: --probe FILE or --feature 'LAYER/FEATURE>VALUE'")
        watching = Watching(self.ahead, self.batch_tokens, self.window, self.top_features)
        return Monitor(chosen.subject(), probes, watching)


Source = Annotated[
    str, typer.Argument(metavar="TEXTS", help="JSONL file, folder of .txt files, or - for standard input.")
]


@add(app)
def watch(
    source: Source,
    *,
    watched: Watch,
    texts: Texts,
    chosen: ReadModel,
    output: Annotated[Path | None, options.output("JSONL file for the verdicts; default: standard output.")] = None,
    only_flagged: Annotated[
        bool, typer.Option("--only-flagged", help="Leave out texts where nothing fires; problems stay.")
    ] = False,
    names: options.FeatureNames = None,
    json: options.Json = False,
) -> None:
    """Flag tokens and texts of a stream: one JSON line a text, in order, as it is read.

    A line that cannot be read becomes {"id", "problem"} and the stream goes on. --json counts the texts in a last line.
    """
    labels = chosen_labels(names, chosen.shipped)
    if output is not None:
        from circuit_tracer.files import require_writable_file

        require_writable_file(output)
    monitor = watched.monitor(chosen)
    counts = {"texts": 0, "flagged": 0, "problems": 0}
    with _opened(output, append=texts.skip > 0) as file:
        for verdict in monitor.watch(texts.read(source)):
            counts["texts"] += 1
            counts["flagged"] += verdict.flagged
            counts["problems"] += verdict.problem is not None
            if verdict.flagged or verdict.problem is not None or not only_flagged:
                file.write(options.dump(verdict.to_json(labels)) + "\n")
                file.flush()
    if json:
        typer.echo(options.dump(counts))
    else:
        typer.echo(", ".join(f"{count:,} {what}" for what, count in counts.items()), err=True)


@add(app)
def calibrate(
    negatives: Source,
    *,
    watched: Watch,
    texts: Texts,
    chosen: ReadModel,
    output: Annotated[Path, options.output("Folder for the probes with their new thresholds; made if needed.")],
    rate: Annotated[float, typer.Option("--rate", help="Share of such texts that may be flagged.")] = 0.01,
    json: options.Json = False,
) -> None:
    """Set thresholds on texts that have nothing to find, so that each probe flags a wished share of such texts.

    The probes are written into a folder, features with their thresholds too; `monitor watch --probe FOLDER` takes them.
    """
    from circuit_tracer.files import require_writable_folder

    require_writable_folder(output)
    monitor = watched.monitor(chosen)
    from circuit_tracer.probes.calibration import calibrated

    for probe, found in calibrated(monitor, texts.read(negatives), rate):
        path = probe.save(output / f"{probe.name.replace('/', '-')}{SUFFIX}")
        if json:
            typer.echo(options.dump({"name": probe.name, "file": str(path), **found.to_json()}))
            continue
        typer.echo(
            f"{probe.name:24} threshold {found.threshold:.5g}: {found.rate:.2%} of such texts, {found.low:.2%} to "
            f"{found.high:.2%} (on {found.negatives:,})"
        )
        if found.rate > rate:
            typer.echo(f"{'':24} too few texts for {rate:.2%}: give {round(1 / rate):,} or more", err=True)


@contextmanager
def _opened(output: Path | None, append: bool) -> Iterator[Any]:
    """Lines are written as they come, so that nothing that was said is lost when the stream is cut."""
    file: IO[str] | None = None if output is None else output.open("a" if append else "w", encoding="utf-8")
    with nullcontext(sys.stdout) if file is None else file as opened:
        yield opened
