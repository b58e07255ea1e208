"""`circuit-tracer evaluate`: measure transcoders or autoencoders on held-out text, beside baselines, and write a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import LazyDecoder, ModelOptions
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.models.parts import ModelParts
    from circuit_tracer.training.config.schema import EvaluationSection, TrainingConfig
    from circuit_tracer.training.evaluation import Evaluation, EvaluationSettings
    from circuit_tracer.transcoders.base import Transcoders


@dataclass(frozen=True)
class Measured(ModelOptions):
    """What is measured: every decoder is read many times, so they are kept."""

    lazy_decoder: LazyDecoder = False

    def subject(self) -> _Subject:
        """The model with what is measured."""
        self.require_without("attention", "elsewhere")
        loaded = self.open()
        if loaded.transcoders.is_autoencoder:
            from circuit_tracer.transcoders import TranscoderSet
            from circuit_tracer.transcoders.autoencoders import Autoencoders

            assert isinstance(loaded.transcoders, TranscoderSet)
            found = Autoencoders.of(loaded.transcoders, None)
            return _Subject(loaded.parts, loaded.tokenizer, found.dictionary, found.layers)
        return _Subject(loaded.parts, loaded.tokenizer, loaded.transcoders, None)


class _Subject(NamedTuple):
    parts: ModelParts
    tokenizer: Any
    transcoders: Transcoders
    layers: tuple[int, ...] | None  # the model's, of autoencoders


def evaluate(
    *,
    chosen: Measured,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Held-out text: files of text, JSONL, parquet or token ids; or a training configuration (file, preset or run "
            "folder), whose held-out documents are read.",
        ),
    ],
    output: Annotated[Path | None, options.output("Folder for evaluation.json, README.md and pictures.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Held-out tokens for reconstruction.  [default: 16384]")
    ] = None,
    replacement_tokens: Annotated[
        int | None,
        typer.Option(
            "--replacement-tokens", min=0, help="Tokens read with all MLPs replaced; 0: none.  [default: 4096]"
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        options.text("-p", "--prompt", help="Prompt whose graph is scored, instead of the default ones. Repeatable."),
    ] = None,
    held_out_prompts: Annotated[
        int | None,
        typer.Option(
            "--held-out-prompts", min=0, help="Score graphs of so many prompts cut from the text too.  [default: 20]"
        ),
    ] = None,
    graphs: Annotated[bool, typer.Option("--graphs/--no-graphs", help="Score graphs of prompts.")] = True,
    faithfulness: Annotated[
        bool | None,
        typer.Option("--faithfulness/--no-faithfulness", help="Test graphs by ablation in the model.  [default: yes]"),
    ] = None,
    max_feature_nodes: Annotated[
        int,
        typer.Option("--max-feature-nodes", min=0, help="Features of a graph with a row of their own; 0 means all."),
    ] = 0,
    random_baseline: Annotated[
        bool | None,
        typer.Option("--random-baseline/--no-random-baseline", help="Measure a random dictionary too.  [default: yes]"),
    ] = None,
    per_layer_baseline: Annotated[
        str | None, typer.Option("--per-layer-baseline", help="Folder or hub id of transcoders to measure beside.")
    ] = None,
    reading: options.Reading,
    max_norm_ratio: Annotated[
        float | None,
        typer.Option(
            "--max-norm-ratio",
            min=0.0,
            help="Leave out tokens whose input norm is above that many medians of a layer; 0: no token.  [default: 10]",
        ),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="Tokens in flight; does not change the result.")
    ] = 2048,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random dictionary.")] = 0,
    json: options.Json = False,
) -> None:
    """Measure transcoders: reconstruction, the model with all MLPs replaced, graphs; autoencoders: the model with its stream
    replaced; beside baselines, with 95 % intervals.
    """
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.models.sources import public_name
    from circuit_tracer.training.config.files import configuration
    from circuit_tracer.training.evaluation import EvaluationSettings, write_report
    from circuit_tracer.training.evaluation import evaluate as measure

    if output is not None:
        require_writable_folder(output)
    config = configuration(data)
    given = {
        "tokens": tokens,
        "replacement_tokens": replacement_tokens,
        "held_out_prompts": held_out_prompts,
        "faithfulness": faithfulness,
        "random_baseline": random_baseline,
    }
    section = _section(config, {name: value for name, value in given.items() if value is not None}, prompt, graphs)
    settings = EvaluationSettings.of(
        section,
        max_feature_nodes=max_feature_nodes or None,
        max_norm_ratio=_norm_ratio(config, max_norm_ratio),
        batch_tokens=batch_tokens,
        seed=seed,
    )
    subject = chosen.subject()
    beside = per_layer_baseline or (str(section.per_layer_baseline) if section.per_layer_baseline else None)
    held_out = _held_out(config, data, section, settings, subject, reading)
    with (
        options.interruption("interrupted: nothing was measured to its end, so nothing is kept"),
        told() as progress,
    ):
        evaluation = measure(
            subject.parts,
            subject.tokenizer,
            subject.transcoders,
            held_out,
            settings,
            layers=subject.layers,
            per_layer=None if beside is None else chosen.dictionary(beside)[0],
            conditions={"transcoders": public_name(chosen.transcoders), "text": public_name(data)},
            progress=progress,
        )
    _tell(evaluation, json, [] if output is None else write_report(evaluation, output))


def _section(
    config: TrainingConfig | None, given: dict[str, Any], prompt: list[str] | None, graphs: bool
) -> EvaluationSection:
    """The evaluation of the configuration, or the defaults of configurations, with what was given instead."""
    from circuit_tracer.training.config.schema import EvaluationSection

    asked = {"--prompt": prompt, "--held-out-prompts": given.get("held_out_prompts")}
    asked["--faithfulness"] = given.get("faithfulness")
    if not graphs and (idle := [name for name, value in asked.items() if value]):
        raise InputError(f"{' and '.join(idle)} and --no-graphs contradict each other: leave one out")
    section = config.evaluation if config is not None else EvaluationSection()
    if config is not None and section.tokens is None:
        given = {"tokens": config.evaluation_tokens, **given}
    prompts = {"prompts": prompt} if prompt else {} if graphs else {"prompts": [], "held_out_prompts": 0}
    return section.model_copy(update={**given, **prompts})


def _norm_ratio(config: TrainingConfig | None, given: float | None) -> float | None:
    """What was given, 0 for None; else the configuration's, or its default."""
    from circuit_tracer.training.config.schema import DataSection

    if given is not None:
        return given or None
    return float(DataSection.model_fields["max_norm_ratio"].default) if config is None else config.data.max_norm_ratio


def _held_out(
    config: TrainingConfig | None,
    data: str,
    section: EvaluationSection,
    settings: EvaluationSettings,
    model: _Subject,
    reading: options.Reading,
) -> list[Any]:
    from circuit_tracer.training.evaluation.held_out import sequences_of_configuration, sequences_of_files

    if config is None:
        tokens = max(settings.tokens, settings.replacement_tokens)
        return sequences_of_files(data, model.parts, model.tokenizer, tokens, **reading.arguments())
    given = {"--data-kind": reading.data_kind, "--context-length": reading.context_length}
    if idle := [name for name, value in given.items() if value is not None]:
        raise InputError(
            f"{', '.join(idle)}: the configuration {data} says that itself; change it there, or leave this out"
        )
    return sequences_of_configuration(config, section, model.tokenizer)


def _tell(evaluation: Evaluation, json: bool, written: list[Path]) -> None:
    from circuit_tracer.training.evaluation.results import PER_LAYER
    from circuit_tracer.training.evaluation.tables import difference_table, summary_table

    if json:
        typer.echo(options.dump({**evaluation.to_json(), "files": [str(path) for path in written]}))
        return
    typer.echo(summary_table(evaluation))
    if PER_LAYER in evaluation.results:
        typer.echo(f"\n{difference_table(evaluation)}")
    for line in evaluation.not_measured:
        typer.echo(f"not measured: {line}")
    for path in written:
        typer.echo(f"wrote {path}")
