"""The side that makes activations: rows are sent to trainers that ask for them, by number (docs/how-to/activations.md)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor

from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError, first_line
from circuit_tracer.training.data.given.description import INPUT, Description, check_rows, described, read_description
from circuit_tracer.training.data.given.wire import Address, packed, receive, send

MESSAGE_BYTES = 2**26  # of rows sent at a time
ASKING = 60.0  # seconds within which a client must say what it wants

Batch = Mapping[str, Tensor]
FromRow = Callable[[int], Iterable[Batch]]  # the rows from a number on


def serve_activations(
    batches: FromRow | Iterable[Batch],
    address: str,
    *,
    model: str,
    layers: Sequence[int],
    width: int,
    input_hook: str = "hook_resid_mid",
    output_hook: str = "hook_mlp_out",
    held_out: FromRow | None = None,
    n_layers: int | None = None,
) -> ActivationServer:
    """Begin to serve rows at ``address`` (tcp://host:port, port 0 for a free one, or unix:///path), in threads of their own.

    Whoever reaches the address can read: use an address of this machine, or a network that is yours.

    ```python
    with serve_activations(rows_from, "tcp://127.0.0.1:5001", model="org/name", layers=range(12), width=768) as server:
        server.wait()
    ```

    Args:
        batches: A function of a row number that gives the rows from there on, in batches as `write_activations` takes them,
            the same rows whenever it is asked; or an iterable, whose rows are sent once: a run on them cannot be resumed,
            and means and scales must fit into its first block (`data.statistics_tokens` at most `data.buffer_tokens`).
        address: Tcp://host:port, port 0 for a free one, or unix:///path.
        model: Name of the model that they are of.
        layers: That rows hold, S of them.
        width: D.
        input_hook: Where `x` was read.
        output_hook: Where `y` was read.
        held_out: The same for rows that are for evaluation alone; None: the trainer chooses them among ``batches``, which
            must then be a function.
        n_layers: Of the whole model, if it is known.

    Returns:
        The running server.

    Raises:
        InputError: For an address that is none.
        ResourceError: When it is taken.
    """
    raw = described(model, list(layers), input_hook, output_hook, width, n_layers)
    return ActivationServer(Address.of(address), raw, batches, held_out)


class ActivationServer:
    """A running server; close it, or leave its `with` block. address: where it listens."""

    def __init__(
        self, place: Address, raw: dict[str, Any], batches: FromRow | Iterable[Batch], held_out: FromRow | None
    ) -> None:
        self._description, self._raw = read_description(raw, "what is served"), raw
        self._batches = batches if callable(batches) else _Once(batches)
        self._held_out = held_out
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._socket = socket.socket(place.family, socket.SOCK_STREAM)
        try:
            if place.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(place.place)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise ResourceError(
                f"cannot listen at {place.place}: {error.strerror or error}. Choose another address or port."
            ) from error
        self._file = Path(place.place) if place.family == socket.AF_UNIX else None
        bound = self._socket.getsockname()
        self.address = f"unix://{bound}" if self._file else "tcp://{}:{}".format(*_host_and_port(bound))
        threading.Thread(target=self._accept, daemon=True).start()

    def wait(self, seconds: float | None = None) -> None:
        """Until it is closed, or for some seconds. Raises what making rows has raised, which the client hears of too."""
        self._closed.wait(seconds)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """No more connections; those that are open end with their next rows."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one client."""
        with connection, suppress(OSError):  # a client that went
            connection.settimeout(ASKING)
            try:
                asked, _ = receive(connection, "the client")
                connection.settimeout(None)
                if asked.get("ask") == "description":
                    self._describe(connection)
                else:
                    self._send_rows(connection, asked)
            except CircuitTracerError as error:
                send(connection, {"kind": "error", "message": str(error)})
            except OSError:
                raise
            except Exception as error:  # of whoever makes the rows
                self._failure = error
                send(connection, {"kind": "error", "message": f"making rows failed: {first_line(error)}"})
                self._closed.set()

    def _describe(self, connection: socket.socket) -> None:
        held_out, anywhere = self._held_out is not None, not isinstance(self._batches, _Once)
        send(connection, {"kind": "description", "description": self._raw, "held_out": held_out, "anywhere": anywhere})

    def _send_rows(self, connection: socket.socket, asked: dict[str, Any]) -> None:
        first, held_out = asked.get("first"), asked.get("held_out")
        if asked.get("ask") != "rows" or type(first) is not int or first < 0:
            raise InputError(f"rows were asked for by {str(asked)[:200]}; a row number is expected")
        source = self._held_out if held_out is True else self._batches
        if source is None:
            raise InputError("there are no rows for evaluation alone")
        for part in _pieces(source(first), self._description):
            if self._closed.is_set():
                raise self._failure or InputError("the server was closed")
            rows = len(part[INPUT])
            send(connection, {"kind": "rows", "first": first, "rows": rows}, packed(part))
            first += rows
        send(connection, {"kind": "end", "rows": first})


class _Once:
    """Rows of an iterable, from where it stands."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches, self._row, self._lock = iter(batches), 0, threading.Lock()

    def __call__(self, first: int) -> Iterator[Batch]:
        with self._lock:
            if first != self._row:
                raise InputError(
                    f"row {first} was asked for, but the rows are sent once and stand at {self._row}: give serve_activations a "
                    "function of the first row, write shards (write_activations), or set data.cache"
                )
            for batch in self._batches:
                self._row += len(batch[INPUT])
                yield batch


def _pieces(batches: Iterable[Batch], description: Description) -> Iterator[dict[str, Tensor]]:
    """Batches in pieces of which none is too large for a message."""
    for batch in batches:
        n_rows = check_rows(batch, description, "a batch")
        row_bytes = sum(tensor.nbytes for tensor in batch.values()) // max(1, n_rows)
        step = max(1, MESSAGE_BYTES // max(1, row_bytes))
        for start in range(0, n_rows, step):
            yield {name: tensor[start : start + step] for name, tensor in batch.items()}


def _host_and_port(bound: Any) -> tuple[str, int]:
    host, port = cast(tuple[str, int], bound[:2])
    return (f"[{host}]" if ":" in host else host), port
