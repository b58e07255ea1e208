"""Where the graphs of a command go: checked before any work, written after it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuit_tracer.cli.options import Pruning
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

SUFFIXES = (".pt", ".safetensors")


UNFINISHED = ".interrupted.safetensors"  # ending of what an interrupted trace leaves where its own file cannot hold it


@dataclass(frozen=True)
class Outputs:
    """A graph file, a folder of viewer files, both, or neither.

    With several prompts the graph file's name gets the slug: NAME.pt becomes NAME-{slug}.pt. overwrite: viewer
    files of a name that is taken are replaced. resume: those of the same prompt are.
    """

    path: Path | None
    folder: Path | None
    pruning: Pruning
    several: bool = False
    overwrite: bool = False
    resume: bool = False

    def check(self, slugs: list[str]) -> Outputs:
        """The same, once it is known that all could be written, and, on a terminal, what a person says of names that are taken.

        Raises InputError (or FileFormatError for a damaged index) for anything that could not be written.
        """
        from circuit_tracer.files import require_writable_file, require_writable_folder
        from circuit_tracer.graph.files.graph_index import read_index
        from circuit_tracer.graph.files.viewer_json import check_slug

        if self.path is not None:
            require_graph_suffix(self.path)
            for slug in slugs:
                require_writable_file(self._graph_path(slug) or self.path)
        if self.folder is None:
            return self
        for slug in slugs:
            check_slug(slug)
        require_writable_folder(self.folder)
        read_index(self.folder)
        free = self.overwrite or self.resume
        return self if free else replace(self, overwrite=may_replace(self.folder, slugs))

    def present(self, slug: str) -> bool:
        """Whether every file of this prompt is there already, of a whole trace; files appear only when complete."""
        path = self._graph_path(slug)
        wanted = [path] if path is not None else []
        wanted += [self.folder / f"{slug}.json"] if self.folder is not None else []
        there = bool(wanted) and all(each.is_file() for each in wanted)
        return there and self.unfinished(slug) is None and not self._says_interrupted(slug)

    def unfinished(self, slug: str) -> Path | None:
        """The file of this prompt's interrupted trace, if there is one to go on with."""
        from circuit_tracer.graph.files.native import interrupted_trace

        paths = [path for path in (self._graph_path(slug), self._aside(slug)) if path is not None and path.is_file()]
        return next((path for path in paths if interrupted_trace(path)), None)

    def write(self, graph: Graph, slug: str) -> list[Path]:
        """Write a graph; returns the files."""
        written = []
        path = self._graph_path(slug)
        if path is not None:
            from circuit_tracer.graph.files.formats import write_graph

            write_graph(graph, path)
            written.append(path)
        if self.folder is not None:
            written.append(self._write_for_viewers(graph, slug, self.folder))
        aside = self._aside(slug)
        if aside is not None and aside.is_file() and self.resume:
            aside.unlink()  # the trace that it was of is whole now
        return written

    def write_unfinished(self, graph: Graph, slug: str) -> list[Path]:
        """Write an interrupted graph, with all that is needed to go on, never in place of a whole one; returns the files."""
        from circuit_tracer.graph.files.native import interrupted_trace

        path, written = self._graph_path(slug), []
        own = path is not None and path.suffix == ".safetensors"
        if path is not None and path.exists() and interrupted_trace(path) is False:
            own = False  # there is a whole one, which stays
        place = path if own else self._aside(slug)
        if place is not None:
            written.append(graph.save(place))
        if self.folder is not None and (not self._exists(slug) or self._says_interrupted(slug)):
            written.append(self._write_for_viewers(graph, slug, self.folder))
        return written

    def _write_for_viewers(self, graph: Graph, slug: str, folder: Path) -> Path:
        from circuit_tracer.graph.files.graph_index import writing_graphs
        from circuit_tracer.graph.files.viewer_json import create_graph_files

        with writing_graphs(folder):
            name = slug if self._is_free(slug, graph) else free_slug(folder, slug)
            if name != slug:
                typer.echo(f"warning: {folder} has a graph named {slug} by now; this one is {name}", err=True)
            return create_graph_files(graph, name, folder, **asdict(self.pruning))

    def _is_free(self, slug: str, graph: Graph) -> bool:
        """Whether a graph may have the name: nobody has it, or what has it may be replaced."""
        if self.overwrite or not self._exists(slug):
            return True
        entry = self._entry(slug)
        return entry.get("prompt") == graph.input_string and (self.resume or "interrupted" in entry)

    def _exists(self, slug: str) -> bool:
        from circuit_tracer.graph.files.hand_made import existing

        return self.folder is not None and existing(self.folder, slug) is not None

    def _says_interrupted(self, slug: str) -> bool:
        return "interrupted" in self._entry(slug)

    def _entry(self, slug: str) -> dict[str, Any]:
        """What the folder's index says of a graph."""
        from circuit_tracer.graph.files.graph_index import read_index

        entries = [] if self.folder is None else read_index(self.folder)
        return next((entry for entry in entries if entry.get("slug") == slug), {})

    def _graph_path(self, slug: str) -> Path | None:
        if self.path is None or not self.several:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{slug}{self.path.suffix}")

    def _aside(self, slug: str) -> Path | None:
        """Where an interrupted trace is kept that has no file of its own, or whose file is that of a whole one."""
        path = self._graph_path(slug)
        if path is not None:
            return path.with_name(path.stem + UNFINISHED)
        return self.folder / f"{slug}{UNFINISHED}" if self.folder is not None else None


def may_replace(folder: Path, slugs: list[str]) -> bool:
    """Whether graphs of these names may be replaced: False if there are none, else what a person at the terminal says.

    Raises InputError where nobody can be asked.
    """
    from circuit_tracer.graph.files.hand_made import existing

    taken = [slug for slug in slugs if existing(folder, slug) is not None]
    if not taken:
        return False
    named = ", ".join(taken[:5]) + (f" and {len(taken) - 5} more" if len(taken) > 5 else "")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(
            f"{folder} has a graph named {named} already. Give another --slug, such as {free_slug(folder, taken[0])}, or "
            "--overwrite (pins, supernodes and labels made by hand move to a new graph of the same prompt and transcoders)"
        )
    typer.confirm(f"{folder} has a graph named {named} already. Replace it?", abort=True, err=True)
    return True


def free_slug(folder: Path, slug: str) -> str:
    """The name with the first number that makes it free."""
    from circuit_tracer.graph.files.hand_made import existing

    number = 2
    while existing(folder, f"{slug}-{number}") is not None:
        number += 1
    return f"{slug}-{number}"


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


def given_options(ctx: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of some options that were given on the command line, as they are written there."""
    spelled = {each.name: each.opts[0] for each in ctx.command.params}
    sources = {name: ctx.get_parameter_source(name) for name in names}
    return [spelled[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def refuse_thresholds(ctx: typer.Context, graph: Path) -> None:
    """Refuse thresholds that were given for a viewer's JSON, which is pruned already."""
    if idle := given_options(ctx, ("node_threshold", "edge_threshold")):
        raise InputError(
            f"{graph} is pruned already: leave {', '.join(idle)} out, or give the graph's own file (.safetensors or .pt)"
        )
