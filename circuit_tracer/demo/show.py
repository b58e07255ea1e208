"""The first minutes: trace a two-hop prompt on the embedded model, say in words what was found, and leave files behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits import Grouping, group_nodes, keep_grouping
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.pictures import draw
from circuit_tracer.circuits.story import Contrast, Story, tell
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels, world
from circuit_tracer.demo.tokenizer import BOS
from circuit_tracer.demo.words import about_unknown, unknown_words
from circuit_tracer.errors import InputError
from circuit_tracer.features.kept import keep_features
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.graph.figures import has_matplotlib
from circuit_tracer.graph.files.graph_index import read_index
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.page import write_page

SLUG = "demo"
GROUPED = 0.85  # of the influence; a small graph can show more than the usual 80 %
SWAPS = {"state": ("California", "Texas"), "country": ("France", "Italy")}  # by kind; the first that is not asked about


class Demonstration(NamedTuple):
    """A traced prompt with its story in it, what its files are called, and those that were written."""

    graph: Graph
    slug: str
    files: list[str]


def load_demo(dtype: torch.dtype = torch.float32) -> ReplacementModel:
    """The embedded language model with its cross-layer transcoder, from the package's own files."""
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=dtype)


def main(folder: str | Path, prompt: str | None = None, swap: str | None = None) -> Demonstration:
    """Trace a prompt, tell what explains its answer, and write the graph (page, viewer JSON, native file, picture, story).

    swap: a state or country of the world, whose group of features is put in the place of the one that the prompt asks about;
    default: California, or another of the kind. Raises InputError for one that could not be asked about.
    """
    target = require_writable_folder(folder)
    prompt = PROMPT if prompt is None else prompt
    if unknown := unknown_words(prompt):
        raise InputError(f"the demo's small world does not know {about_unknown(unknown)}")
    contrast = contrast_prompt(prompt, swap)
    start = time.perf_counter()
    model = load_demo()
    loaded = time.perf_counter()
    graph = attribute(prompt, model)
    traced = time.perf_counter()
    labels = load_labels()
    keep_features(graph, FEATURES, labels)
    story, groups = explain(graph, model, contrast)
    told = time.perf_counter()
    print(f"prompt      {prompt}")
    print(f"answer      {_targets(graph)}")
    print(
        f"time        {loaded - start:.2f} s to load, {traced - loaded:.2f} s to trace, {told - traced:.2f} s for the story\n"
    )
    print("\n".join(story.lines()))
    _print_quality(graph)
    slug = name_for(prompt, target)
    written = write_files(graph, target, labels, story, groups, slug)
    for name, what in written.items():
        print(f"wrote       {name}  ({what})")
    if not has_matplotlib():
        print("left out    the picture, which needs matplotlib: pip install 'circuit-tracing[plot]'")
    return Demonstration(graph, slug, list(written))


def explain(graph: Graph, model: ReplacementModel, contrast: str | None = None) -> tuple[Story, Grouping]:
    """The story of a graph of the embedded model, beside another prompt's groups if one is given, and its own named groups."""
    groups, contrasts = named_groups(graph, model), []
    if contrast is not None:
        other = attribute(contrast, model)
        contrasts.append(Contrast(other, named_groups(other, model)))
    return tell(graph, model, groups, contrasts=contrasts), groups


def named_groups(graph: Graph, model: Traceable, labels: Mapping[tuple[int, int], str] | None = None) -> Grouping:
    """Groups of a graph of the embedded model, cut by what taking them out does, and named; by its own labels, or others."""
    labels = load_labels() if labels is None else labels
    return name_groups(
        graph, group_nodes(graph, model, labels=labels, node_threshold=GROUPED), labels=labels, model=model
    )


def contrast_prompt(prompt: str, swap: str | None = None) -> str | None:
    """The same question about another state or country; None for a prompt that asks about none, where none is named.

    Raises InputError for a name that the world does not have, or has of another kind.
    """
    asked = next((one for one in (*world.two_hops(), *world.one_hops()) if one.prompt == prompt.strip()), None)
    if asked is None or asked.entity is None:
        if swap is not None:
            raise InputError(
                f"{prompt!r} asks about no state or country of the demo's world, so --swap {swap} has no place"
            )
        return None
    own = world.entity(asked.entity)
    rivals = {one.name: one for one in world.entities() if one.kind == own.kind and one != own}
    name = swap if swap is not None else next(each for each in SWAPS[own.kind] if each != own.name)
    if name not in rivals:
        raise InputError(
            f"--swap {name}: the prompt asks about {own.name}, so it takes another {own.kind} of the demo's world, such as "
            f"{', '.join(list(rivals)[:5])}"
        )
    other = rivals[name]
    return prompt.strip().replace(asked.subject, other.name if asked.city is None else other.open_cities[0])


def name_for(prompt: str, folder: Path) -> str:
    """What the files of a prompt are called: demo, or, where another prompt's are called so, demo-2 and so on."""
    entries = {str(each.get("slug")): str(each.get("prompt")).removeprefix(BOS).strip() for each in read_index(folder)}
    names = (SLUG, *(f"{SLUG}-{number}" for number in range(2, len(entries) + 3)))
    return next(name for name in names if entries.get(name, prompt.strip()) == prompt.strip())


def write_files(
    graph: Graph,
    folder: Path,
    labels: dict[tuple[int, int], str],
    story: Story,
    groups: Grouping,
    slug: str = SLUG,
) -> dict[str, str]:
    """Write the files of a graph and its story; what was written, by path."""
    keep_grouping(graph, groups)
    # Pruned as the groups were, so that a share is the same on the page as in the story and the picture.
    json_file = create_graph_files(
        graph, slug, folder, scan="circuit-tracing-demo", labels=labels, node_threshold=GROUPED
    )
    native = graph.save(folder / f"{slug}.safetensors")
    drawn = {}
    if has_matplotlib():
        draw(graph, picture := folder / f"{slug}.svg", grouping=groups, labels=labels)
        drawn[str(picture)] = "picture"
    page = write_page(graph, folder / f"{slug}.html", slug=slug, labels=labels, node_threshold=GROUPED)
    text = folder / f"{slug}.md"
    with atomic_write(text) as temporary:
        temporary.write_text(story.markdown(), encoding="utf-8")
    return {
        str(page): "open it in a browser",
        str(text): "the story, with the nodes of each sentence",
        str(json_file): "graph for the viewers",
        str(native): "everything, for Graph.load",
        **drawn,
    }


def describe_node(graph: Graph, node: int, labels: dict[tuple[int, int], str]) -> str:
    """One node in words: a token, a feature by its label, an error, or a target."""
    nodes, tokens = graph.nodes, graph.token_strings or []
    kind, position, layer = NodeKind(int(nodes.kind[node])), int(nodes.position[node]), int(nodes.layer[node])
    word = tokens[position].strip() if tokens else str(position)
    if kind is NodeKind.TOKEN:
        return f'"{word}"'
    if kind is NodeKind.ERROR:
        return f"error L{layer}@{word}"
    if kind is NodeKind.TARGET:
        return f"output {graph.targets.label[node - nodes.layout.target_start].strip()}"
    label = labels.get((layer, int(nodes.feature[node])), f"feature {int(nodes.feature[node])}")
    return f"[{label}] L{layer}@{word}"


def _targets(graph: Graph) -> str:
    pairs = zip(graph.targets.label, graph.targets.weight.tolist(), strict=True)
    return ", ".join(f"{label.strip()} {weight:.3f}" for label, weight in pairs)


def _print_quality(graph: Graph) -> None:
    scores, quality = graph_scores(graph), graph.reconstruction
    n_features = len(graph.selected_features)
    print(
        f"\ngraph       {n_features} features, {len(graph.edges)} edges; worst sum-rule residual {graph.residual:.1e}"
    )
    print(f"scores      replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}")
    if quality is not None:
        nmse = ", ".join(f"{value:.3f}" for value in quality.nmse.tolist())
        print(f"transcoder  NMSE by layer {nmse}; {float(quality.l0.sum()):.1f} active features a token")
