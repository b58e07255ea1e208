"""Where the graphs of a command go: checked before any work, written after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from circuit_tracer.cli.options import Pruning
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True)
class Outputs:
    """A graph file, a folder of viewer files, both, or neither.

    With several prompts the graph file's name gets the slug: NAME.pt becomes NAME-{slug}.pt. labels: of features, for the
    viewer files.
    """

    path: Path | None
    folder: Path | None
    pruning: Pruning
    several: bool = False
    labels: Mapping[tuple[int, int], str] | None = None

    def check(self, slugs: list[str]) -> None:
        """Raise InputError (or FileFormatError for a damaged index) for anything that could not be written."""
        from circuit_tracer.files import require_writable_folder
        from circuit_tracer.graph.files.graph_index import read_index
        from circuit_tracer.graph.files.viewer_json import check_slug

        if self.path is not None:
            require_graph_suffix(self.path)
            require_writable_folder(self.path.parent)
        if self.folder is not None:
            for slug in slugs:
                check_slug(slug)
            require_writable_folder(self.folder)
            read_index(self.folder)

    def present(self, slug: str) -> bool:
        """Whether every file of this prompt is there already; files appear only when complete."""
        path = self._graph_path(slug)
        wanted = [path] if path is not None else []
        wanted += [self.folder / f"{slug}.json"] if self.folder is not None else []
        return bool(wanted) and all(each.is_file() for each in wanted)

    def _graph_path(self, slug: str) -> Path | None:
        if self.path is None or not self.several:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{slug}{self.path.suffix}")

    def write(self, graph: Graph, slug: str) -> list[Path]:
        """Write a graph; returns the files."""
        written = []
        path = self._graph_path(slug)
        if path is not None:
            from circuit_tracer.graph.files.formats import write_graph

            write_graph(graph, path)
            written.append(path)
        if self.folder is not None:
            from circuit_tracer.graph.files.viewer_json import create_graph_files

            written.append(create_graph_files(graph, slug, self.folder, **asdict(self.pruning), labels=self.labels))
        return written


def require_graph_suffix(path: Path) -> None:
    """Refuse a graph file of unknown kind."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"the graph file {path} ends in {path.suffix or 'nothing'}; end it in .safetensors (this project's format) "
            "or .pt (circuit-tracer's)"
        )


def is_viewer_json(path: Path) -> bool:
    """Whether a file is named as viewer JSON, plain or packed."""
    return path.name.endswith((".json", ".json.gz"))


def name_of(path: Path) -> str:
    """The name of a graph's file without its ending."""
    return path.name.removesuffix(".json.gz") if is_viewer_json(path) and path.suffix == ".gz" else path.stem


def refuse_thresholds(ctx: typer.Context, graph: Path) -> None:
    """Refuse thresholds that were given for a viewer's JSON, which is pruned already."""
    sources = {name: ctx.get_parameter_source(name) for name in ("node_threshold", "edge_threshold")}
    if names := [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]:
        idle = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InputError(
            f"{graph} is pruned already: leave {idle} out, or give the graph's own file (.safetensors or .pt)"
        )
