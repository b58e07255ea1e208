"""Starting and stopping: a port, a thread, the browser."""

from __future__ import annotations

import atexit
import errno
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.errors import InputError, ResourceError, warn
from circuit_tracer.features.folder import INDEX, FeatureFolder
from circuit_tracer.features.labels import read_labels
from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.graphs import GraphFolder
from circuit_tracer.viewer.server.runs import is_run
from circuit_tracer.viewer.server.site import Site

if TYPE_CHECKING:
    from types import TracebackType

    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.probes.probe import Probe
    from circuit_tracer.replacement_model import ReplacementModel

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 30.0, 10.0
TEXTS_AT_ONCE = 4  # that a monitor reads between two looks at the clock
ANSWERS_SECONDS = 1  # that answers which are on their way may take once the server ends


def serve(
    data_dir: str | Path,
    frontend_dir: str | Path | None = None,
    features_dir: str | Path | None = None,
    port: int = 8032,
    *,
    model: ReplacementModel | None = None,
    labels: Labels | None = None,
    neuronpedia_secret: str | None = None,
    probes: Sequence[Probe] = (),
    open_browser: bool = False,
) -> Server:
    """Serve the graphs of a folder to this machine's browsers, in the background; `stop()` ends it.

    Args:
        data_dir: `{slug}.json` files with their `graph-metadata.json`, or the folder of a run, which takes no model.
        frontend_dir: Another page than ours.
        features_dir: Files of features, default `features` beside the graphs.
        port: Another free one is taken if it is in use; 0 for any.
        model: For tracing, interventions and steering from the page.
        labels: Of features, for graphs traced, pruned or compared here; default those of features_dir.
        neuronpedia_secret: Opens Neuronpedia's protocol to those who know it.
        probes: That watch texts which are sent to the server; they need the model.
        open_browser: Open the page in a browser.

    Returns:
        The running server; `url` is its address.

    Raises:
        InputError: For folders that are not there.
        ResourceError: If no port can be had.
    """
    graphs = GraphFolder(data_dir)
    run = graphs.folder if is_run(graphs.folder) else None
    if run is not None and model is not None:
        raise InputError(
            f"{data_dir} is a run: what it has is shown, and nothing is traced into it; leave the model out"
        )
    features = Path(features_dir) if features_dir is not None else graphs.folder / "features"
    if features_dir is not None and not features.is_dir():
        raise InputError(f"no folder of features at {features}")
    frontend = STATIC if frontend_dir is None else Path(frontend_dir).absolute()
    if not (frontend / "index.html").is_file():
        raise InputError(f"no page in {frontend}: it lacks index.html")
    if neuronpedia_secret is not None and not neuronpedia_secret.strip():
        raise InputError("neuronpedia_secret is empty; choose one that nobody guesses")
    engine = monitor = None
    if probes and model is None:
        raise InputError("probes watch what a model reads; give the model too")
    if model is not None:
        from circuit_tracer.features.belonging import of_other_transcoders
        from circuit_tracer.viewer.server.engine import Engine

        engine = Engine(model)
        if (features / INDEX).is_file() and (other := of_other_transcoders(FeatureFolder(features), model.transcoders)):
            warn(other)
        if probes:
            from circuit_tracer.probes.monitor import Monitor, Watching

            monitor = Monitor(model, probes, Watching(ahead=TEXTS_AT_ONCE))
    if labels is None and features.is_dir():
        labels = read_labels(features)
    site = Site(graphs, features, engine, frontend, neuronpedia_secret, labels, run, monitor)
    return Server(site, listening_socket(port), open_browser)


class Server:
    """A server at work; a context manager. url: its address.

    Args:
        site: What it serves.
        listening: The socket.
        open_browser: Open the page in a browser.
    """

    def __init__(self, site: Site, listening: socket.socket, open_browser: bool = False) -> None:
        import uvicorn

        from circuit_tracer.viewer.server.app import make_app
        from circuit_tracer.viewer.server.slow_connections import ImpatientProtocol

        self.site = site
        self.port: int = listening.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/"
        config = uvicorn.Config(
            make_app(site),
            loop="asyncio",
            http=ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=ANSWERS_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._socket = listening
        self._thread = threading.Thread(target=self._run, name=f"server {self.url}", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        self._await_start()
        atexit.register(self.stop)
        if open_browser:
            webbrowser.open(self.url)

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """End the server and what it is doing; a trace that runs is cancelled. May be called twice.

        Whether all has ended: a job ends where it next reports, for which `seconds` may be too short.
        """
        atexit.unregister(self.stop)
        self.site.stopping.set()
        self._server.should_exit = True
        ended = self.site.jobs.stop(seconds)
        self._thread.join(seconds)
        self._socket.close()
        return ended and not self._thread.is_alive()

    def wait(self) -> None:
        """Block until the server has ended."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def get_logs(self) -> list[str]:
        """The last requests, a line each: method, path, status."""
        return list(self.site.log)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.url}, {self.site.graphs.folder})"

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _await_start(self) -> None:
        for _ in range(int(START_SECONDS / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            self._thread.join(0.01)
        raise ResourceError(f"the server did not start at {self.url}")


def listening_socket(port: int, or_another: bool = True) -> socket.socket:
    """A socket on the port asked for; if that is taken, on a free one, unless ``or_another`` is False.

    Raises InputError for no port, ResourceError if none can be had.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist; give one from 1 to 65535, or 0 for any that is free")
    for attempt in (port, 0) if or_another else (port,):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, attempt))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise ResourceError(f"cannot listen on {HOST}:{attempt}: {error.strerror}") from error
        else:
            return listening
    raise ResourceError(
        f"no port of {HOST} is free" if or_another else f"port {port} of {HOST} is taken; choose another with --port"
    )
