"""`circuit-tracer probe`: fit linear probes, score texts with them, and explain why one fired."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.frame import add, new_app
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.probes.examples import Example
    from circuit_tracer.probes.reading import Subject
    from circuit_tracer.probes.score import Scoring

app = new_app(help="Linear probes: fit one, score texts, explain an alarm.", no_args_is_help=True)

ProbeFile = Annotated[Path, typer.Argument(metavar="PROBE", help="Probe file, .safetensors.")]
Positive = Annotated[
    str | None,
    typer.Option("--positive", help="The label that is looked for; default: the true one of true/false, yes/no, 1/0."),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="-p is a user message, a .json file of messages, or a JSON list of them.")
]
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ReadModel(ModelOptions):
    """A model with a dictionary, or by itself (-m alone): then features are not read."""

    required: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.given:
            super().__post_init__()
            return
        if self.model is None:
            raise InputError("name the model with -m, or its transcoders with -t, or use --demo")
        named = {
            "--select": self.select,
            "--input-shift": self.input_shift,
            "--feature-input-hook": self.feature_input_hook,
            "--feature-output-hook": self.feature_output_hook,
        }
        if idle := [option for option, value in named.items() if value is not None]:
            raise InputError(f"{' and '.join(idle)} say something of the transcoders of -t: name them")

    def subject(self) -> Subject:
        """What probes read."""
        from circuit_tracer.probes.reading import Subject

        if self.given:
            return Subject.of(self.open())
        parts, tokenizer = self.language_model(str(self.model))
        return Subject(parts, tokenizer, None, self.bos)


@add(app)
def fit(
    *,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Examples, JSONL: text or messages, with a label or spans of characters, and a group "
            "(circuit_tracer/probes/README.md).",
        ),
    ],
    layer: Annotated[int, typer.Option("--layer", min=0, help="Layer whose site is read.")],
    output: Annotated[Path, options.output("The probe, .safetensors.")],
    site: Annotated[str, typer.Option("--site", help="Place of the stream in the layer.")] = "hook_resid_post",
    on: Annotated[
        Literal["stream", "features", "both"],
        typer.Option("--on", help="What the probe reads; the others are measured beside it."),
    ] = "stream",
    feature_layer: Annotated[
        list[int] | None,
        typer.Option(
            "--feature-layer", min=0, help="Layer whose features are read; default: that of --layer. Repeatable."
        ),
    ] = None,
    pool: Annotated[
        Literal["token", "last", "mean", "max"],
        typer.Option("--pool", help="What is read of a text: every token by itself, the last, their mean or largest."),
    ] = "last",
    method: Annotated[
        Literal["l2", "l1", "mean"],
        typer.Option("--method", help="Logistic regression (l2, l1), or the difference of means."),
    ] = "l2",
    rate: Annotated[
        float, typer.Option("--rate", help="Rate of false positives at which it fires; set on held-out negatives.")
    ] = 0.01,
    negatives: Annotated[
        str | None,
        typer.Option("--negatives", help="More negative examples, JSONL, that set thresholds and nothing else."),
    ] = None,
    positive: Positive = None,
    folds: Annotated[int, typer.Option("--folds", min=3, help="Parts that groups are split into.")] = 5,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Resamples of the bootstrap over groups.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of folds, draws and the random dictionary.")] = 0,
    name: Annotated[str | None, typer.Option("--name", help="What alarms call it; default: the file's name.")] = None,
    chosen: ReadModel,
    json: options.Json = False,
) -> None:
    """Fit a probe, and measure it on unseen groups beside raw activations, features, a random dictionary and words."""
    from circuit_tracer.files import require_writable_file

    if output.suffix != SUFFIX:
        raise InputError(f"-o {output}: end it in {SUFFIX}")
    require_writable_file(output)
    from circuit_tracer.probes.examples import read_examples
    from circuit_tracer.probes.fit import fit as made

    examples = read_examples(data, positive)
    others = [] if negatives is None else read_examples(negatives, positive)
    subject = chosen.subject()
    with told() as progress:
        found = made(
            subject,
            examples,
            layer=layer,
            site=site,
            columns=on,
            feature_layers=feature_layer or None,
            pool=pool,
            method=method,
            rate=rate,
            negatives=others,
            folds=folds,
            draws=draws,
            seed=seed,
            name=name or output.stem,
            progress=progress,
        )
    found.probe.save(output)
    if json:
        typer.echo(options.dump({**found.to_json(), "file": str(output)}))
        return
    typer.echo("\n".join([*found.lines(), f"wrote      {output}"]))


@add(app)
def score(
    probe: ProbeFile,
    *,
    data: Annotated[
        str | None, typer.Option("--data", help="Texts, JSONL as for fit; labels are compared if all have one.")
    ] = None,
    prompt: Annotated[list[str] | None, options.text("-p", "--prompt", help="A text. Repeatable.")] = None,
    chat: Chat = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print the score of every token.")] = False,
    positive: Positive = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Resamples of the bootstrap over groups.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    chosen: ReadModel,
    json: options.Json = False,
) -> None:
    """Score texts, and say which fire."""
    examples = _examples(data, prompt, chat, positive)
    from circuit_tracer.probes.probe import Probe
    from circuit_tracer.probes.score import score as scored

    loaded = Probe.load(probe)
    subject = chosen.subject()
    with told() as progress:
        found = scored(subject, loaded, examples, draws=draws, seed=seed, progress=progress)
    if json:
        for row in _rows(found, tokens):
            typer.echo(options.dump(row))
        if found.report is not None:
            typer.echo(options.dump({"report": found.report.to_json()}))
        return
    lines = [line for row in _rows(found, tokens) for line in _row_lines(row)]
    if found.report is not None:
        lines += ["", *found.report.lines()]
    typer.echo("\n".join(lines))


@add(app)
def explain(
    probe: ProbeFile,
    *,
    prompt: Annotated[str, options.text("-p", "--prompt", help="The text that it is scored on.")],
    chat: Chat = False,
    position: Annotated[
        int | None,
        typer.Option(
            "--position", help="Token whose score is explained; default: the highest, or what the probe reads."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Features and tokens to name, and features to take out.")
    ] = 8,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Take the named features out of the model and see.")
    ] = True,
    max_feature_nodes: Annotated[
        int, typer.Option("--max-feature-nodes", min=0, help="Features that get a row of their own; 0 means all.")
    ] = 2000,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What features are called: labels.json, or a folder of features."),
    ] = None,
    output: Annotated[
        Path | None, options.output("Write the graph: .safetensors, or .html for a page of its own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random features taken out beside.")] = 0,
    chosen: ModelOptions,
    json: options.Json = False,
) -> None:
    """Explain why a probe fires: who carried its score, down to tokens, tested by taking nodes out."""
    from circuit_tracer.files import require_writable_file

    if output is not None:
        if output.suffix not in (SUFFIX, ".html"):
            raise InputError(f"-o {output}: end it in {SUFFIX} or .html")
        require_writable_file(output)
    from circuit_tracer.cli.serve import chosen_labels
    from circuit_tracer.probes.explain import explain as explained
    from circuit_tracer.probes.probe import Probe

    loaded, called = Probe.load(probe), chosen_labels(labels, chosen.shipped)
    model = chosen.open()
    with told() as progress:
        found = explained(
            model,
            loaded,
            _example(prompt, chat),
            position=position,
            top=top,
            validate=validate,
            max_feature_nodes=max_feature_nodes,
            labels=called,
            seed=seed,
            progress=progress,
        )
    if output is not None:
        found.graph.save(output) if output.suffix == SUFFIX else found.graph.to_html(output)
    if json:
        typer.echo(options.dump(found.to_json()))
        return
    typer.echo("\n".join([*found.lines(), *([] if output is None else [f"wrote      {output}"])]))


def _examples(data: str | None, prompt: list[str] | None, chat: bool, positive: str | None) -> list[Example]:
    if (data is None) == (not prompt):
        raise InputError("give texts with --data FILE or with -p TEXT (not both)")
    from circuit_tracer.probes.examples import read_examples

    if data is not None:
        return read_examples(data, positive, labelled=False)
    return [_example(text, chat) for text in prompt or ()]


def _example(prompt: str, chat: bool) -> Example:
    from circuit_tracer.cli.prompts import read_jobs
    from circuit_tracer.probes.examples import Example

    found, where = read_jobs(prompt, None, chat, None)[0].prompt, f"-p {prompt[:40]!r}"
    return Example(found, where=where) if isinstance(found, str) else Example(messages=found, where=where)


def _rows(found: Scoring, tokens: bool) -> list[dict[str, Any]]:
    """One a text."""
    rows = []
    for number, each in enumerate(found.texts):
        row: dict[str, Any] = {"text": each.text.text, "score": each.score, "fires": each.score > found.probe.threshold}
        at = (
            [place for place in range(len(each.tokens)) if each.text.counted[place]] if tokens else found.alarms(number)
        )
        if tokens or found.probe.pool == "token":
            row["tokens"] = [_token(found, number, place) for place in at]
        rows.append(row)
    return rows


def _token(found: Scoring, number: int, place: int) -> dict[str, Any]:
    each = found.texts[number]
    start, stop = int(each.text.start[place]), int(each.text.stop[place])
    score = float(each.tokens[place])
    return {
        "position": place,
        "start": start,
        "end": stop,
        "text": each.text.text[start:stop],
        "score": score,
        "fires": score > found.probe.threshold,
    }


def _row_lines(row: dict[str, Any]) -> list[str]:
    mark = "*" if row["fires"] else " "
    lines = [f"{row['score']:>10.4g} {mark} {row['text'][:100]!r}"]
    return lines + [
        f"{'':12}{each['score']:>10.4g} {'*' if each['fires'] else ' '} {each['text']!r}@{each['position']}"
        for each in row.get("tokens", ())
    ]
