"""`circuit-tracer features`: build feature pages, write them in other forms, and label features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.edit_options import Demo, Model, Transcoders, load_pair
from circuit_tracer.errors import InputError

app = typer.Typer(help="What features mean: examples, logit effects, labels.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of built features.")]
Graphs = Annotated[
    list[Path] | None,
    typer.Option("--graph", help="Only features of this graph (.safetensors, .pt or a viewer's .json). Repeatable."),
]


@app.command()
def build(
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for the features; made if needed.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Text to look at: files of text, JSONL, parquet or token ids; or a training configuration (file, preset or "
            "run folder), whose training documents are read.",
        ),
    ] = None,
    transcoder_set: Transcoders = None,
    model: Model = None,
    demo: Demo = False,
    graph: Graphs = None,
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="Read so many tokens; 0 means all.")] = 1_000_000,
    data_kind: Annotated[
        Literal["text", "jsonl", "parquet", "tokens"] | None,
        typer.Option("--data-kind", help="What the files of --data are; default: by their ending."),
    ] = None,
    field: Annotated[str, typer.Option("--field", help="Field or column of --data that holds the text.")] = "text",
    context_length: Annotated[
        int | None, typer.Option("--context-length", min=2, help="Tokens of a sequence.  [default: 256]")
    ] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="Read each document by itself instead of joining them end to end.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Strongest examples a feature.")] = 12,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Examples a feature drawn evenly from all.")] = 20,
    before: Annotated[int, typer.Option("--before", min=0, help="Tokens shown in front of an example's own.")] = 24,
    after: Annotated[int, typer.Option("--after", min=0, help="Tokens shown behind it.")] = 8,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens the model reads at once.")] = 4096,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    lazy_encoder: Annotated[
        bool, typer.Option("--lazy-encoder/--no-lazy-encoder", help="Leave encoders on disk.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show progress.")] = False,
    debug: options.Debug = False,
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
    loaded = load_pair(transcoder_set, model, demo, device, dtype, lazy_encoder)
    if demo != (data is None):
        raise InputError("name the text with --data; --demo brings its own")
    if data is None:
        from circuit_tracer.demo.features import corpus_of

        corpus = corpus_of(loaded.tokenizer)
    else:
        reading = {"kind": data_kind, "field": field, "context_length": context_length, "separate": separate}
        corpus = open_corpus(data, loaded.parts, loaded.tokenizer, **reading)  # type: ignore[arg-type]
    with options.progress(verbose) as progress:
        build_features(loaded, corpus, output, settings, wanted=wanted, progress=progress)
    label_from_records(output)
    typer.echo(f"wrote {output}")


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files; made if needed.")],
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
    debug: options.Debug = False,
) -> None:
    """Write built features in another form."""
    from circuit_tracer.features import FeatureFolder
    from circuit_tracer.features.export import export_json, export_neuronpedia
    from circuit_tracer.features.labels import read_labels
    from circuit_tracer.features.wanted import features_of_graphs

    features = FeatureFolder(folder)
    wanted = features_of_graphs(graph) if graph else None
    places = None if wanted is None else [(layer, int(index)) for layer, row in wanted.items() for index in row]
    if to == "json":
        typer.echo(f"wrote {export_json(features, output, places)} files to {output}")
        return
    if model_id is None or source_set is None:
        raise InputError("Neuronpedia's uploads name model and transcoders: give --model-id and --source-set")
    written = export_neuronpedia(features, output, model_id, source_set, places, read_labels(folder))
    typer.echo(f"wrote {len(written)} batches to {output}")
