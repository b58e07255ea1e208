"""What a server serves."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.features.folder import INDEX, FeatureFolder
from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.engine import Engine
from circuit_tracer.viewer.server.graphs import GraphFolder
from circuit_tracer.viewer.server.jobs import Jobs
from circuit_tracer.viewer.server.problems import Conflict

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.probes.monitor import Monitor

LINES_KEPT = 2000


@dataclass
class Site:
    """Graphs, features and a page; a model if there is one.

    features: a folder as `formats` of feature files lay it out, or None. frontend: another page than ours. secret: opens
    Neuronpedia's protocol. run: the folder of a run, whose page is shown instead of the graphs. labels: for features, by
    (layer, index) or by node id, in graphs that are traced or pruned here. monitor: of the engine's model, watches texts.
    """

    graphs: GraphFolder
    features: Path | None = None
    engine: Engine | None = None
    frontend: Path = STATIC
    secret: str | None = None
    labels: Labels | None = None
    run: Path | None = None
    monitor: Monitor | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    jobs: Jobs = field(default_factory=Jobs)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def has_features(self) -> bool:
        """Whether there is a folder with more than a diagnosis of heads."""
        folder = self.features
        return folder is not None and folder.is_dir() and any(path != self.head_table for path in folder.iterdir())

    @property
    def records(self) -> FeatureFolder | None:
        """Details of features, if there are any."""
        folder = self.features
        return FeatureFolder(folder) if folder is not None and (folder / INDEX).is_file() else None

    @property
    def head_table(self) -> Path:
        """Where a diagnosis of the model's heads is, if there is one."""
        return (self.features or self.graphs.folder / "features") / "heads.json"

    @property
    def model(self) -> Engine:
        """The engine; Conflict if the server has no model."""
        if self.engine is None:
            raise Conflict(
                "this server was started without a model, so it only shows graphs; start it with -t or --demo"
            )
        return self.engine
