"""What the tools work with: the graphs of one folder, a model if there is one, and what features are called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from circuit_tracer.assistants.limits import Limits
from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError
from circuit_tracer.files import require_writable_folder
from circuit_tracer.graph.files.graph_index import INDEX_NAME
from circuit_tracer.graph.files.hand_made import SUFFIXES
from circuit_tracer.graph.files.viewer_json import check_slug
from circuit_tracer.viewer.document import viewer_document
from circuit_tracer.viewer.server.columns import Columns
from circuit_tracer.viewer.server.engine import Engine
from circuit_tracer.viewer.server.graphs import WHOLE, GraphFolder
from circuit_tracer.viewer.server.problems import Conflict, NotThere

if TYPE_CHECKING:
    from circuit_tracer.features.folder import FeatureFolder
    from circuit_tracer.graph.graph import Graph
    from circuit_tracer.replacement_model import ReplacementModel


class Model:
    """A model that is opened once, in the background, so that the first answers need not wait for it.

    opened: its engine, once there is one. error: why there is none.
    """

    def __init__(self, load: Callable[[], ReplacementModel]) -> None:
        self._load, self._opening = load, threading.Lock()
        self.opened: Engine | None = None
        self.error: str | None = None

    def open_soon(self) -> None:
        """Begin to open it."""
        threading.Thread(target=self._try, name="opening the model", daemon=True).start()

    @property
    def state(self) -> Literal["opening", "open", "failed"]:
        """How far it is."""
        return "open" if self.opened else "failed" if self.error else "opening"

    @property
    def engine(self) -> Engine:
        """The engine, once it is open. Raises ResourceError if it cannot be opened."""
        self._try()
        if self.opened is None:
            raise ResourceError(f"the server's model could not be opened: {self.error}")
        return self.opened

    def _try(self) -> None:
        with self._opening:
            if self.opened is None and self.error is None:
                try:
                    self.opened = Engine(self._load())
                except CircuitTracerError as error:
                    self.error = str(error)
                except Exception as error:
                    self.error = f"{type(error).__name__}: {error}"


@dataclass
class Workplace:
    """A folder of graphs. labels: of features by (layer, index). records: what is known of features."""

    graphs: GraphFolder
    model: Model | None = None
    labels: Mapping[tuple[int, int], str] = field(default_factory=dict)
    records: FeatureFolder | None = None
    limits: Limits = field(default_factory=Limits)
    _made: tuple[tuple[str, int], Columns] | None = None

    @property
    def engine(self) -> Engine:
        """The model's engine. Raises Conflict without a model."""
        if self.model is None:
            raise Conflict("this server was started without a model; start it with -t or --demo to trace and to test")
        return self.model.engine

    def names(self) -> list[str]:
        """The graphs of the folder: those of the index first, then others by name."""
        listed = [entry["slug"] for entry in self.graphs.entries()[0] if _is_name(entry["slug"])]
        files = [path for suffix in WHOLE for path in self.graphs.folder.glob(f"*{suffix}")]
        whole = sorted({path.name.removesuffix(path.suffix) for path in files} - set(listed))
        return [*listed, *(name for name in whole if _is_name(name) and self.graphs.whole(name) is not None)]

    def columns(self, name: str) -> Columns:
        """The pruned graph, of its JSON; pruned here where only the whole graph is there."""
        check_slug(name)
        try:
            return self.graphs.columns(name)
        except NotThere:
            path = self.graphs.whole(name)
            if path is None:
                raise NotThere(f"no graph {name!r} is in this folder; list_graphs names those that are") from None
        key = name, path.stat().st_mtime_ns
        if self._made is None or self._made[0] != key:
            document = viewer_document(self.graphs.opened(name), labels=self.labels, slug=name)
            self._made = key, Columns(document)
        return self._made[1]

    def whole(self, name: str) -> Graph:
        """The whole graph, shared by all calls: not to be changed. Raises NotThere, or Conflict if only its JSON is here."""
        check_slug(name)
        return self.graphs.opened(name)

    def called(self, graph: Graph) -> dict[tuple[int, int], str]:
        """What its features are called."""
        return {**graph.labels, **self.labels}

    def copy(self, name: str) -> Graph:
        """The whole graph once more, for what changes it. Raises as `whole` does."""
        self.whole(name)
        return self.graphs.graph(name)

    def require_writable(self, name: str | None, replace: bool) -> None:
        """Raise unless a graph of that name (None: of a name that is free) can be written, into this folder and nowhere else:
        what is written to a link lands behind it.
        """
        files = [INDEX_NAME]
        if name is not None:
            check_slug(name)
            if not replace and self.graphs.taken(name):
                raise Conflict(f"there is a graph named {name!r} already; choose another name, or say replace")
            files += [f"{name}{suffix}" for suffix in (*SUFFIXES, *WHOLE)]
        if links := [file for file in files if (self.graphs.folder / file).is_symlink()]:
            raise InputError(
                f"{links[0]} in the folder of graphs is a link, and nothing is written through one; remove it"
            )


def _is_name(name: str) -> bool:
    try:
        check_slug(name)
    except InputError:
        return False
    return True


def open_folder(path: Path) -> GraphFolder:
    """The folder of graphs; made if it is not there."""
    return GraphFolder(require_writable_folder(path))
