"""The graphs of one folder: `{slug}.json` (or `.json.gz`) for the page, beside it the whole graph for pruning anew."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError
from circuit_tracer.files import atomic_write, parse_json
from circuit_tracer.graph.files.graph_index import INDEX_NAME, add_to_index, usable_entries, writing_graphs
from circuit_tracer.graph.files.hand_made import (
    SUFFIXES,
    HandMade,
    existing,
    hand_made,
    set_aside_if_lost,
)
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.files.read_json import load_viewer_json, sealed_graph, typed_q_params
from circuit_tracer.graph.files.viewer_json import GraphDocument, Labels, check_slug, graph_document
from circuit_tracer.graph.pruning import PrunePolicy
from circuit_tracer.viewer.document import with_sum_rules
from circuit_tracer.viewer.server.columns import Columns
from circuit_tracer.viewer.server.folders import file_inside
from circuit_tracer.viewer.server.problems import Conflict, NotThere

if TYPE_CHECKING:
    from circuit_tracer.graph.edge_heads import HeadsOfEdge
    from circuit_tracer.graph.graph import Graph

WHOLE = (".safetensors", ".pt")
KEPT = 2  # documents in memory
_FEATURE_ID = re.compile(r"(\d+_\d+)_\d+")


class GraphFolder:
    """Reading and writing of the graphs of a folder, from any thread."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise InputError(f"no folder of graphs at {self.folder}; make it, or name another")
        self._reading = threading.Lock()
        self._known: OrderedDict[tuple[str, int, int], Columns] = OrderedDict()
        self._opened: tuple[tuple[str, int, int], Graph] | None = None

    def entries(self) -> tuple[list[dict[str, Any]], str | None]:
        """(metadata of each graph, with bytes and whether it can be pruned anew; what is wrong with the index, or None).

        Graphs of the index first; then other files, of which only the name is known. The server's own entries in a graph's
        metadata are plain facts about its files.
        """
        usable, warning = usable_entries(self.folder)
        listed = {entry["slug"]: entry for entry in usable}
        files: dict[str, Path] = {}
        for suffix in reversed(SUFFIXES):
            files |= {path.name.removesuffix(suffix): path for path in sorted(self.folder.glob(f"*{suffix}"))}
        files = {slug: path for slug, path in files.items() if path.name != INDEX_NAME and not slug.startswith(".")}
        order = [slug for slug in listed if slug in files] + [slug for slug in files if slug not in listed]
        entries = []
        for slug in order:
            try:
                size = self.path(slug).stat().st_size
            except (CircuitTracerError, OSError):  # a link out of the folder, or a file that has just gone
                continue
            facts = {"slug": slug, "bytes": size, "can_prune": self.whole(slug) is not None}
            entries.append({**listed.get(slug, {}), **facts})
        return entries, warning

    def path(self, slug: str) -> Path:
        """The JSON file of a graph; NotThere if there is none."""
        for suffix in SUFFIXES:
            try:
                return file_inside(self.folder, slug + suffix)
            except NotThere:
                continue
        raise NotThere(f"no graph {slug[:200]!r} in this folder")

    def whole(self, slug: str) -> Path | None:
        """The file of the unpruned graph beside the JSON, if there is one."""
        for suffix in WHOLE:
            try:
                return file_inside(self.folder, slug + suffix)
            except NotThere:
                continue
        return None

    def columns(self, slug: str) -> Columns:
        """A graph, kept in memory until its file changes. Raises NotThere or FileFormatError."""
        path = self.path(slug)
        key = _version(path)
        with self._reading:
            if key not in self._known:
                self._known[key] = Columns(load_viewer_json(path))
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            return self._known[key]

    def document(self, slug: str) -> Mapping[str, Any]:
        """A graph's document as it is; not to be changed."""
        return self.columns(slug).document

    def graph(self, slug: str) -> Graph:
        """The unpruned graph. Raises Conflict if only its JSON is here."""
        path = self.whole(slug)
        if path is None:
            raise Conflict(
                f"only the pruned JSON of {slug!r} is in this folder; this needs the whole graph beside it, "
                f"{slug}.safetensors (circuit-tracer attribute -o {slug}.safetensors) or {slug}.pt"
            )
        return as_graph(path)

    def opened(self, slug: str) -> Graph:
        """The unpruned graph, kept in memory until another one is asked for or its file changes; not to be changed. What is
        found out about its prompt is kept with it. Raises NotThere without the graph, Conflict if only its JSON is here.
        """
        path = self.whole(slug)
        if path is None:
            self.path(slug)
            return self.graph(slug)  # says that only its JSON is here
        key = _version(path)
        with self._reading:
            if self._opened is None or self._opened[0] != key:
                self._opened = key, self.graph(slug)
            return self._opened[1]

    def save_view(self, slug: str, view: Mapping[str, Any]) -> dict[str, Any]:
        """Put a view (pins, supernodes, places, labels) into the graph's file; returns it as saved.

        Labels of nodes that the file does not hold, because it is pruned, are kept.
        """
        with writing_graphs(self.folder):
            path = self.path(slug)
            columns = self.columns(slug)
            old = typed_q_params(columns.document.get("qParams") or {})
            labels = list(view.get("clerps", old.get("clerps") or []))
            labels += [pair for pair in _first_of_each(old.get("clerps") or []) if pair[0] not in columns.number]
            saved = {**old, **view, "clerps": _first_of_each(labels)}
            self._write(path, {**columns.document, "qParams": saved})
        return saved

    def add_heads(self, slug: str, graph: Graph) -> int:
        """Put the heads that a graph's edges run through (`Graph.edge_heads`) into its files; how many links have some now."""
        table = graph.edge_heads
        assert table is not None
        names = graph.nodes.ids()
        ends = [[names[node] for node in column.tolist()] for column in (table.source, table.target)]
        found = dict(zip(zip(*ends, strict=True), table.rows(range(len(table))), strict=True))
        with writing_graphs(self.folder):
            path, document = self.path(slug), self.document(slug)
            links = [
                _with_heads(link, found.get((link.get("source"), link.get("target")))) for link in document["links"]
            ]
            graph.save(self.folder / f"{slug}.safetensors")
            self._write(path, {**document, "links": links})
        return sum("heads" in link for link in links)

    def add(self, slug: str, graph: Graph, document: GraphDocument, replace: bool = False) -> None:
        """Save a new graph: whole, for the page, and in the index. Raises Conflict if the name is taken.

        In place of another one of the same name, what people put into that moves into the new one, as far as it has the nodes.
        """
        check_slug(slug)
        with writing_graphs(self.folder):
            if not replace and self.taken(slug):
                raise Conflict(f"there is a graph named {slug!r} already; choose another name")
            before = hand_made(self.folder, slug)
            view: dict[str, Any] = {}
            if before:
                names = {node["node_id"] for node in parse_json(document.text, slug, halves=True)["nodes"]}
                view, lost = before.moved(document.metadata, names)
                set_aside_if_lost(before, lost)
            graph.save(self.folder / f"{slug}.safetensors")
            self._add(slug, graph, document, view)

    def chosen(self, slug: str) -> set[str]:
        """The nodes that people pinned or grouped in a graph, if there is one of that name."""
        path = existing(self.folder, slug)
        try:
            return set() if path is None else HandMade.of(path).nodes
        except CircuitTracerError:  # `add` sets it aside
            return set()

    def taken(self, slug: str) -> bool:
        """Whether a graph of that name is here, or a link of its name that leads nowhere."""
        return any(os.path.lexists(self.folder / f"{slug}{suffix}") for suffix in (*SUFFIXES, *WHOLE))

    def free_name(self, wanted: str) -> str:
        """`wanted`, with a number if it is taken."""
        number, name = 1, wanted
        while self.taken(name):
            number += 1
            name = f"{wanted}-{number}"
        return name

    def prune(
        self,
        slug: str,
        node_threshold: float,
        edge_threshold: float,
        labels: Labels | None = None,
        keep: Iterable[str] = (),
    ) -> dict[str, int]:
        """Prune the whole graph anew for the page; numbers of nodes and links.

        The saved view stays, and so do its nodes and those of ``keep``; what else the file says of the graph is written
        again: labels, which come before ``labels``, where details of features are, who made it, and how it was pruned.
        """
        with writing_graphs(self.folder):
            graph, old = self.graph(slug), self.document(slug)
            view = typed_q_params(old.get("qParams") or {})
            chosen = {*keep, *view["pinnedIds"], *(name for group in view["supernodes"] for name in group[1:])}
            exported = graph_document(
                graph,
                slug,
                node_threshold=node_threshold,
                edge_threshold=edge_threshold,
                labels={**(labels or {}), **labels_of(old)},
                keep=chosen,
                **_said_before(graph, old["metadata"]),
            )
            document = self._add(slug, graph, exported, view)
        return {"nodes": len(document["nodes"]), "links": len(document["links"])}

    def _add(self, slug: str, graph: Graph, exported: GraphDocument, view: dict[str, Any]) -> dict[str, Any]:
        document = with_sum_rules(parse_json(exported.text, slug, halves=True), graph)
        document["qParams"] |= view
        document["qParams"]["clerps"] = _moved(view.get("clerps") or [], document["nodes"])
        try:
            path = self.path(slug)
        except NotThere:
            path = self.folder / f"{slug}.json"
        self._write(path, document)
        add_to_index(self.folder, exported.metadata)
        return document

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(sealed_graph(document), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            data = text.encode("utf-8")
        except ValueError as error:  # numbers that are not finite, or halves of surrogate pairs
            raise FileFormatError(
                f"{path.name} holds what JSON cannot carry ({error}); export the graph again"
            ) from error
        with atomic_write(path) as temporary:
            temporary.write_bytes(gzip.compress(data, 6) if path.suffix == ".gz" else data)


def _with_heads(link: Mapping[str, Any], heads: HeadsOfEdge | None) -> dict[str, Any]:
    return dict(link) if heads is None else {**link, "heads": heads.to_json()}


def _version(path: Path) -> tuple[str, int, int]:
    """Differs once a file was written anew."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def labels_of(document: Mapping[str, Any]) -> dict[Any, str]:
    """Labels in a document, by node id and, for all places of a feature, by (layer, index)."""
    found: dict[Any, str] = {}
    for node in document["nodes"]:
        name, label = str(node.get("node_id")), node.get("clerp")
        if not isinstance(label, str) or not label:
            continue
        found[name] = label
        of_attention = node.get("feature_type") == "lorsa" and "dictionary_index" in node
        known = of_attention or node.get("feature_type") == "cross layer transcoder"
        if known and (match := _FEATURE_ID.fullmatch(name)):
            layer, _, index = match[1].partition("_")
            found.setdefault((int(layer), int(index)), label)
    return found


def _said_before(graph: Graph, metadata: Any) -> dict[str, Any]:
    """What a graph's file says of it besides the graph, as options of ``graph_document``."""
    if not isinstance(metadata, Mapping):
        return {}
    said: dict[str, Any] = {"scan": metadata.get("transcoder_list") or metadata.get("scan")}
    for name in ("feature_details", "info"):
        if isinstance(metadata.get(name), Mapping):
            said[name] = dict(metadata[name])
    for made_anew in ("generator", "create_time_ms"):
        said.get("info", {}).pop(made_anew, None)
    settings = metadata.get("pruning_settings")
    if isinstance(settings, Mapping) and settings.get("policy") in get_args(PrunePolicy):
        said["policy"] = settings["policy"]
    if graph.token_strings is None:
        said["token_strings"] = metadata.get("prompt_tokens")
    return said


def _moved(labels: list[Any], nodes: list[dict[str, Any]]) -> list[Any]:
    """Labels of nodes that are gone go to another node of the same feature, if there is one."""
    present = {node["node_id"] for node in nodes}
    of_feature = {match[1]: match[0] for node in nodes if (match := _FEATURE_ID.fullmatch(node["node_id"]))}
    found = []
    for pair in labels:
        match = _FEATURE_ID.fullmatch(str(pair[0])) if isinstance(pair, list) and len(pair) == 2 else None
        moves = match is not None and pair[0] not in present and match[1] in of_feature
        found.append([of_feature[match[1]], pair[1]] if match is not None and moves else pair)
    return found


def _first_of_each(labels: list[Any]) -> list[list[str]]:
    """[[node, label]], the first of each node."""
    found: dict[str, str] = {}
    for pair in labels:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            found.setdefault(str(pair[0]), str(pair[1]))
    return [[name, label] for name, label in found.items()]
