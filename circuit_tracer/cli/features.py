"""`circuit-tracer features`: build feature pages, write them in other forms, and label features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.frame import add, new_app
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.features import FeatureFolder

app = new_app(help="What features mean: examples, logit effects, labels.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of built features.")]
Graphs = Annotated[
    list[Path] | None,
    typer.Option("--graph", help="Only features of this graph (.safetensors, .pt or a viewer's .json). Repeatable."),
]


@add(app)
def build(
    *,
    output: Annotated[Path, options.output("Folder for the features; made if needed.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Text to look at: files of text, JSONL, parquet or token ids; or a training configuration (file, preset or "
            "run folder), whose training documents are read.",
        ),
    ] = None,
    chosen: ModelOptions,
    graph: Graphs = None,
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="Read so many tokens; 0 means all.")] = 1_000_000,
    reading: options.Reading,
    separate: Annotated[
        bool, typer.Option("--separate", help="Read each document by itself instead of joining them end to end.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Strongest examples a feature.")] = 12,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Examples a feature drawn evenly from all.")] = 20,
    before: Annotated[int, typer.Option("--before", min=0, help="Tokens shown in front of an example's own.")] = 24,
    after: Annotated[int, typer.Option("--after", min=0, help="Tokens shown behind it.")] = 8,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens the model reads at once.")] = 4096,
    json: options.Json = False,
) -> None:
    """Read text once and write, for all features or those of graphs, examples, density, histogram and logit effects.

    Run it again after an interruption: it goes on where it was.
    """
    from circuit_tracer.features import BuildSettings, build_features, open_corpus
    from circuit_tracer.features.labels import label_from_records
    from circuit_tracer.features.wanted import features_of_graphs
    from circuit_tracer.files import require_writable_folder

    require_writable_folder(output)
    wanted = features_of_graphs(graph) if graph else None
    settings = BuildSettings(tokens or None, top, sample, before, after, batch_tokens=batch_tokens)
    if chosen.demo != (data is None):
        raise InputError("name the text with --data; --demo brings its own")
    chosen.require_without("attention", "elsewhere")
    loaded = chosen.open()
    if data is None:
        from circuit_tracer.demo.features import corpus_of

        corpus = corpus_of(loaded.tokenizer)
    else:
        corpus = open_corpus(data, loaded.parts, loaded.tokenizer, **reading.arguments(), separate=separate)
    kept = f"interrupted: {output} keeps what was read up to the last stretch; the same command goes on from there"
    with options.interruption(kept), told() as progress:
        build_features(loaded, corpus, output, settings, wanted=wanted, progress=progress)
    label_from_records(output)
    options.say_written([output], json)


@add(app)
def label(
    folder: Folder,
    model: Annotated[str, typer.Option("--model", help="Name of the interpreting model, as its server knows it.")],
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Address that speaks OpenAI's protocol, ending in /v1; or OPENAI_BASE_URL."),
    ] = None,
    graph: Graphs = None,
    price: Annotated[
        str | None, typer.Option("--price", metavar="IN,OUT", help="Prices of a million tokens, to show the cost.")
    ] = None,
    shown: Annotated[int, typer.Option("--shown", min=1, help="Texts that the model sees of a feature.")] = 10,
    tested: Annotated[
        int, typer.Option("--tested", min=0, help="Texts with the feature to score with; 0: no score.")
    ] = 5,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Questions in flight.")] = 8,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before questions are sent.")] = False,
    json: options.Json = False,
) -> None:
    """Let a language model name features and score the names; what it would cost is shown first.

    The key is in OPENAI_API_KEY. Answers are kept in the folder: asking again costs nothing.
    """
    from circuit_tracer.features import FeatureFolder
    from circuit_tracer.features.chat import ChatModel
    from circuit_tracer.features.interpret import Interpretation, Interpreter
    from circuit_tracer.features.labels import add_labels

    features, prices = FeatureFolder(folder), _prices(price)
    chat = ChatModel.from_environment(model, folder / ".answers", endpoint)
    interpreter = Interpreter(features, chat, Interpretation(shown, tested))
    places = _places(features, graph)
    estimate = interpreter.estimate(places)
    typer.echo(
        f"{estimate.features} features; {estimate.requests} questions to {model} ({estimate.known} answered already), about "
        f"{estimate.input_tokens:,} tokens to read and up to {estimate.output_tokens:,} to write"
        + ("" if prices is None else f": {estimate.cost(*prices):.2f} at {price} a million"),
        err=json,
    )
    if estimate.requests and not yes:
        typer.confirm("ask them?", abort=True, err=json)
    kept = f"interrupted: the answers so far are kept in {folder}; asking again costs nothing for them"
    with options.interruption(kept), told() as progress:
        labels = interpreter.interpret(places, workers, progress)
    add_labels(folder, labels)
    scores = [one.score for one in labels.values() if one.score is not None]
    mean = sum(scores) / len(scores) if scores else None
    if json:
        found = {"labelled": len(labels), "of": len(places), "mean_score": mean}
        typer.echo(options.dump({**found, "files": [str(folder)]}))
        return
    scored = "" if mean is None else f"; mean score {mean:.2f} of {len(scores)}"
    typer.echo(f"labelled {len(labels)} features in {folder}{scored}")


@add(app, "fetch-labels")
def fetch(
    folder: Folder,
    model_id: Annotated[str, typer.Option("--model-id", help="Neuronpedia's name of the model, such as gemma-2-2b.")],
    source_set: Annotated[
        str, typer.Option("--source-set", help="Its name of the transcoders, such as gemmascope-transcoder-16k.")
    ],
    graph: Graphs = None,
    host: Annotated[str | None, typer.Option("--host", help="Another Neuronpedia; or NEURONPEDIA_HOST.")] = None,
    json: options.Json = False,
) -> None:
    """Take labels from Neuronpedia, for features of graphs or all built ones. FOLDER need not hold features."""
    from circuit_tracer.features import FeatureFolder
    from circuit_tracer.features.labels import add_labels
    from circuit_tracer.features.neuronpedia_labels import fetch_labels
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.neuronpedia import Neuronpedia
    from circuit_tracer.transcoders.cache import get_cache_dir

    require_writable_folder(folder)
    places = _places(None if graph else FeatureFolder(folder), graph)
    server = Neuronpedia.from_environment(host)
    kept = "interrupted: the labels so far are kept in the cache; fetching again goes on from there"
    with options.interruption(kept), told() as progress:
        labels = fetch_labels(server, places, model_id, source_set, get_cache_dir() / "labels", progress)
    add_labels(folder, labels)
    if json:
        typer.echo(options.dump({"labelled": len(labels), "of": len(places), "files": [str(folder)]}))
        return
    typer.echo(f"labelled {len(labels)} of {len(places)} features in {folder}")


@add(app)
def export(
    folder: Folder,
    output: Annotated[Path, options.output("Folder for the files; made if needed.")],
    to: Annotated[
        Literal["json", "neuronpedia"],
        typer.Option(
            "--to",
            help="A JSON file a feature, as circuit-tracer's viewer reads them; or Neuronpedia's uploads.",
        ),
    ] = "json",
    graph: Graphs = None,
    model_id: Annotated[str | None, typer.Option("--model-id", help="Neuronpedia's name of the model.")] = None,
    source_set: Annotated[
        str | None, typer.Option("--source-set", help="Neuronpedia's name of the transcoders.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write built features in another form."""
    from circuit_tracer.features import FeatureFolder
    from circuit_tracer.features.export import export_json, export_neuronpedia
    from circuit_tracer.features.labels import read_labels

    features = FeatureFolder(folder)
    places = _places(features, graph)
    if to == "json":
        _say_exported(export_json(features, output, places), "files", output, json)
        return
    if model_id is None or source_set is None:
        raise InputError("Neuronpedia's uploads name model and transcoders: give --model-id and --source-set")
    written = export_neuronpedia(features, output, model_id, source_set, places, read_labels(folder))
    _say_exported(len(written), "batches", output, json)


def _say_exported(count: int, what: str, folder: Path, json: bool) -> None:
    text = f"wrote {count} {what} to {folder}"
    typer.echo(options.dump({"folder": str(folder), "count": count}) if json else text)


def _places(features: FeatureFolder | None, graphs: list[Path] | None) -> list[tuple[int, int]]:
    """The features of graphs, if any are given, else all of a folder."""
    from circuit_tracer.features.wanted import features_of_graphs

    if graphs:
        return [(layer, int(index)) for layer, row in features_of_graphs(graphs).items() for index in row]
    return list(features or ())


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--price is {text!r}; expected two numbers such as 0.15,0.60") from error
    return read, written
