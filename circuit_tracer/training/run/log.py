"""The record of a run: OUT/log.jsonl always, TensorBoard and Weights & Biases when the configuration asks for them.

A line is the report of a step, `{"step": 10, "loss": ...}` with the fields of `StepReport`, an evaluation,
`{"step": 500, "evaluation": {...}}`, or, where a run went on with other settings, what they were and what they became,
`{"step": 500, "changed": {"run.tokens": [1000, 2000]}}`. Each has a digest of itself, by which a damaged line is noticed.
When a run resumes, lines beyond the step it resumes from are taken back, so that the file is that of a run that was never
interrupted.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from circuit_tracer.errors import FileFormatError, InputError, ResourceError
from circuit_tracer.files import LARGEST_JSON, atomic_write, parse_json, read_bytes, require_writable_folder
from circuit_tracer.files.digests import as_written, read_sealed, sealed, unsealed, write_sealed
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run.events import Listener, StepReport

LOG_NAME = "log.jsonl"


def require_extras(config: TrainingConfig) -> None:
    """Raise InputError, before anything else happens, if a log is asked for whose package is not installed."""
    for asked, package, key in (
        (config.run.tensorboard, "tensorboard", "run.tensorboard"),
        (config.run.wandb, "wandb", "run.wandb"),
    ):
        if asked and find_spec(package) is None:
            raise InputError(
                f"{key} needs the package {package}, which is not installed: pip install 'circuit-tracing[{package}]', "
                f"or leave {key} out"
            )


class RunLog:
    """All logs of a run as one listener; a context manager that closes them."""

    def __init__(self, config: TrainingConfig, step: int = 0, changes: Sequence[dict[str, Any]] = ()) -> None:
        """Open the logs in ``config.run.out``. step: the one the run resumes from, 0 for a new run, which starts new files.
        changes: the entries of all changes of settings up to there.

        Raises InputError for a missing package, FileFormatError if the old log is damaged before its last line.
        """
        require_extras(config)
        self._closing = ExitStack()
        self._logs: list[Listener] = [self._closing.enter_context(JsonLog(config.run.out / LOG_NAME, step, changes))]
        if config.run.tensorboard:
            self._logs.append(self._closing.enter_context(TensorBoardLog(config.run.out / "tensorboard", step)))
        if config.run.wandb:
            self._logs.append(self._closing.enter_context(WandbLog(config, step)))

    def progress(self, report: StepReport) -> None:
        """Hand on to every log."""
        for log in self._logs:
            log.progress(report)

    def message(self, text: str) -> None:
        """Logs hold numbers only."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Hand on to every log."""
        for log in self._logs:
            log.evaluated(results)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self._closing.close()


class JsonLog:
    """One JSON object a line, written out at once."""

    def __init__(self, path: Path, step: int = 0, changes: Sequence[dict[str, Any]] = ()) -> None:
        require_writable_folder(path.parent)
        self.path, self._step = path, step
        kept = [line for line in _complete_lines(path) if _stays(parse_json(line, path), step)] if step else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed in __exit__)
        for entry in changes:
            if entry["step"] == step:
                self._append(entry)

    def progress(self, report: StepReport) -> None:
        """Append the report."""
        self._step = report.step
        self._append(asdict(report))

    def message(self, text: str) -> None:
        """Not kept."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Append the results under the last step reported."""
        self._append({"step": self._step, "evaluation": results})

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(sealed(as_written(finite(entry))), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(
                f"could not write {self.path}: {error.strerror or error}. Free some space and resume the run."
            ) from error

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()


class TensorBoardLog:
    """Scalars for TensorBoard; layers as `nmse/layer_03`. Needs the package tensorboard."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if step == 0:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._step = step

    def progress(self, report: StepReport) -> None:
        """Add the report's numbers."""
        self._step = report.step
        self._add(scalars(report))

    def message(self, text: str) -> None:
        """Not kept."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Add the numbers among the results."""
        self._add(dict(numbers(results, "evaluation")))

    def _add(self, named: Mapping[str, float]) -> None:
        for name, value in named.items():
            self._writer.add_scalar(name, value, self._step)
        self._writer.flush()

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases, continued after a resume. Needs the package wandb and, to upload, a login of its own.

    Steps that a resumed run repeats are there already, with the same numbers, and Weights & Biases leaves the second out.
    """

    def __init__(self, config: TrainingConfig, step: int = 0) -> None:
        import wandb

        folder = require_writable_folder(config.run.out)
        remembered = folder / "wandb-run-id"
        if step == 0 or not remembered.is_file():
            write_sealed(remembered, {"id": secrets.token_hex(4)})
        self._run: Any = wandb.init(
            project=config.run.wandb,
            id=str(read_sealed(remembered, "Remove it to begin a new run there.").get("id")),
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            allow_val_change=True,  # a run may go on with other settings
        )
        self._step = step

    def progress(self, report: StepReport) -> None:
        """Log the report's numbers."""
        self._step = report.step
        self._run.log(scalars(report), step=report.step)

    def message(self, text: str) -> None:
        """Not kept."""

    def evaluated(self, results: dict[str, Any]) -> None:
        """Log the numbers among the results."""
        self._run.log(dict(numbers(results, "evaluation")), step=self._step)

    def __enter__(self) -> WandbLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self._run.finish()


def scalars(report: StepReport) -> dict[str, float]:
    """The numbers of a report by name: means over layers, each layer, and the terms of the loss."""
    named: dict[str, float] = {"loss": report.loss, "tokens": report.tokens, "learning_rate": report.learning_rate}
    named |= {"tokens_per_second": report.tokens_per_second, "skipped": report.skipped}
    if report.active:
        named["active"] = report.active
    if report.cut is not None:
        named["cut"] = report.cut
    for name, values_S in (("nmse", report.nmse_S), ("l0", report.l0_S), ("dead", report.dead_S)):
        named[f"{name}/mean"] = mean(values_S)
        named |= {f"{name}/layer_{layer:02d}": value for layer, value in enumerate(values_S)}
    return named | {f"loss/{name}": value for name, value in report.terms.items()}


def numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """(name/inner/0, number) for every number inside nested dicts and lists."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers(item, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from numbers(item, f"{name}/{index:02d}")


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _complete_lines(path: Path) -> list[str]:
    """The lines of an old log; a last one that was cut off before its end is dropped."""
    text = read_bytes(path, LARGEST_JSON).decode("utf-8", "replace") if path.is_file() else ""
    *lines, cut_off = text.split("\n")
    # a line whose end was damaged, not cut off
    lines += [cut_off] if _is_entry(cut_off[:-1]) else []
    for number, line in enumerate(lines, start=1):
        if not _is_entry(line):
            raise FileFormatError(
                f"line {number} of {path} is not an entry of a log; move the file away and resume again"
            )
    return lines


def _stays(entry: dict[str, Any], step: int) -> bool:
    """Whether a line is of the run up to ``step``. Changes made there are written anew: one may have been taken back."""
    found: int = entry["step"]
    return found < step or (found == step and "changed" not in entry)


def _is_entry(line: str) -> bool:
    try:
        entry = unsealed(parse_json(line, "a line"), "a line", "")
    except (FileFormatError, TypeError, AttributeError):
        return False
    return type(entry.get("step")) is int
