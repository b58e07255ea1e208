"""`circuit-tracer story`: what a graph says of its prompt, in sentences that interventions have tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.outputs import name_of
from circuit_tracer.cli.serve import Shown, keep_known
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.circuits import Grouping
    from circuit_tracer.circuits.story import Story
    from circuit_tracer.features.chat import ChatModel
    from circuit_tracer.features.folder import FeatureFolder
    from circuit_tracer.graph import Graph
    from circuit_tracer.replacement_model import ReplacementModel

    Labels = Mapping[tuple[int, int], str]

SUFFIXES = (".md", ".json", ".html")


def story(
    graph: Annotated[
        Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors, or circuit-tracer's .pt.")
    ],
    *,
    output: Annotated[
        Path | None,
        options.output("Write the story here: .md, .json, or .html for a page that shows the graph with it."),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        options.text(
            "--contrast",
            help="Another prompt of as many tokens, whose groups are put in the place of this one's. Repeatable.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What features are called here: labels.json, or a folder of features."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of built features, whose examples help to name groups.")
    ] = None,
    name_by: Annotated[
        str | None,
        typer.Option("--name-by", metavar="MODEL", help="A language model that names groups; needs --features."),
    ] = None,
    reword_by: Annotated[
        str | None,
        typer.Option(
            "--reword-by",
            metavar="MODEL",
            help="A language model that rewords sentences; one that says anything else than before stays as it was.",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", help="Its address, which speaks OpenAI's protocol and ends in /v1; or OPENAI_BASE_URL."
        ),
    ] = None,
    random_groups: Annotated[
        int, typer.Option("--random-groups", min=0, help="Random groups of a group's size to measure beside it.")
    ] = 20,
    chosen: Shown,
    pruning: options.Pruning,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random groups.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Interventions to a pass.")] = 16,
    json: options.Json = False,
) -> None:
    """Tell what a graph says of its prompt, sentence by sentence, and test each by an intervention.

    The nodes are put into groups unless the file has them, groups without a name are named, and all are taken out of the model
    (or swapped for those of --contrast).
    Without -t or --demo nothing is tested, and the story says so. It is kept in the graph file, where the viewer finds it.
    """
    _require_sense(output, contrast, features, name_by, reword_by, endpoint, chosen.given)
    from circuit_tracer.circuits import keep_grouping
    from circuit_tracer.circuits.story import Contrast, tell
    from circuit_tracer.features.folder import FeatureFolder
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.graph.files.native import as_graph

    if output is not None:
        require_writable_folder(output.parent)
    records = None if features is None else FeatureFolder(features)
    namer, rewording = _chat(name_by, endpoint), _chat(reword_by, endpoint)
    subject = as_graph(graph)
    called = keep_known(subject, labels, chosen.shipped, features)
    model = chosen.open() if chosen.given else None
    named = _grouping(model, called, records, namer, pruning)
    kept = f"interrupted: no story is kept, and {graph} is as it was"
    with options.interruption(kept):
        groups = named(subject)
        keep_grouping(subject, groups)
        others = [Contrast(traced, named(traced)) for traced in map(_traced(model), contrast or ())]
        told = tell(
            subject,
            model,
            groups,
            contrasts=others,
            wording=rewording,
            random_groups=random_groups,
            seed=seed,
            batch_size=batch_size,
        )
    written = [subject.save(graph)] if graph.suffix == ".safetensors" else []
    if output is not None:
        written.append(_write(output, told, subject, called, records, pruning))
    lines = [*told.lines(), "", f"time       {told.seconds:.1f} s", *(f"wrote      {path}" for path in written)]
    typer.echo(options.dump(told.to_json()) if json else "\n".join(lines))


def _require_sense(
    output: Path | None,
    contrast: list[str] | None,
    features: Path | None,
    name_by: str | None,
    reword_by: str | None,
    endpoint: str | None,
    with_model: bool,
) -> None:
    if output is not None and output.suffix not in SUFFIXES:
        raise InputError(
            f"the story's file {output} ends in {output.suffix or 'nothing'}; end it in {', '.join(SUFFIXES)}"
        )
    if contrast and not with_model:
        raise InputError("--contrast traces another prompt: name the transcoders with -t, or use --demo")
    if name_by is not None and features is None:
        raise InputError("--name-by shows a language model texts in which features are active: give --features FOLDER")
    if endpoint is not None and name_by is None and reword_by is None:
        raise InputError("--endpoint is the address of a language model: name it with --name-by or --reword-by")


def _chat(model: str | None, endpoint: str | None) -> ChatModel | None:
    from circuit_tracer.features.chat import ChatModel
    from circuit_tracer.transcoders.cache import get_cache_dir

    return None if model is None else ChatModel.from_environment(model, get_cache_dir() / "answers", endpoint)


def _traced(model: ReplacementModel | None) -> Callable[[str], Graph]:
    from circuit_tracer.attribution import attribute

    def traced(prompt: str) -> Graph:
        assert model is not None
        return attribute(prompt, model)

    return traced


def _grouping(
    model: ReplacementModel | None,
    labels: Labels,
    features: FeatureFolder | None,
    namer: ChatModel | None,
    pruning: options.Pruning,
) -> Callable[[Graph], Grouping]:
    """What makes named groups of a graph."""
    from circuit_tracer.circuits import group_nodes, kept_grouping
    from circuit_tracer.circuits.naming import interpret_groups, name_groups

    def named(graph: Graph) -> Grouping:
        groups = kept_grouping(graph) or group_nodes(graph, model, labels=labels, **asdict(pruning))
        if namer is not None and features is not None:
            names = interpret_groups(graph, groups, features, namer, labels)
            groups = groups.named({place: found.name for place, found in names.items()})
        return name_groups(graph, groups, labels=labels, features=features, model=model)

    return named


def _write(
    path: Path,
    told: Story,
    graph: Graph,
    labels: Labels,
    features: FeatureFolder | None,
    pruning: options.Pruning,
) -> Path:
    from circuit_tracer.files import atomic_write

    if path.suffix == ".html":
        from circuit_tracer.viewer.page import write_page

        cut: dict[str, Any] = {"node_threshold": pruning.node_threshold, "edge_threshold": pruning.edge_threshold}
        return write_page(graph, path, features=features, labels=labels, slug=name_of(path), **cut)
    text = told.markdown() if path.suffix == ".md" else f"{options.dump(told.to_json())}\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
