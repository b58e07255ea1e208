"""Activations over a socket: asked for by number, broken off and taken up again, refused when they are anything else."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import FileFormatError, InputError, ResourceError
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.data import serve_activations
from circuit_tracer.training.data.given import client, wire
from circuit_tracer.training.data.given.source import open_rows
from tests.support.data_cases import batches
from tests.support.given_cases import SAID, D, S, given, made, opened, pieces
from tests.support.process_cases import results, together
from tests.support.train_cases import rank, settings, whole


def test_rows_that_are_sent_once_serve_one_pass(tmp_path: Path) -> None:
    refusal = pytest.raises(InputError, match="sends its rows once and has no rows for evaluation besides")
    with serve_activations(pieces(made(), 30), "tcp://127.0.0.1:0", **SAID, width=D) as server, refusal:
        opened(given(server.address, tmp_path))
    apart = partial(pieces, made(40, seed=1), 30)
    with serve_activations(pieces(made(), 30), f"unix://{tmp_path}/s", **SAID, width=D, held_out=apart) as server:
        settings = given(server.address, tmp_path, run__batch=60, data__buffer_tokens=240, data__statistics_tokens=240)
        stream = opened(settings)
        stream.statistics(240)
        assert len(list(batches(stream))) == 700 // 60
        with pytest.raises(InputError, match="row 0 was asked for, but the rows are sent once and stand at 700"):
            opened(settings).next()


def test_a_connection_that_breaks_goes_on_at_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times in vain is an error that says what to do."""
    whole, genuine, received = made(), client.receive, []

    def breaks(connection: socket.socket, source: str) -> Any:
        received.append(1)
        if len(received) % 5 == 0 or len(received) > 60:
            connection.close()
            raise ConnectionResetError(104, "Connection reset by peer")
        return genuine(connection, source)

    monkeypatch.setattr(client, "receive", breaks)
    with serve_activations(partial(pieces, whole, 30), "tcp://127.0.0.1:0", **SAID, width=D) as server:
        source = open_rows(server.address, Ranks())
        assert torch.equal(torch.cat([part["x"] for part in source.parts(40, False)]), whole["x"][40:])
        received += [1] * 60
        with pytest.raises(ResourceError, match=r"broke off before row 0: .*reset by peer.*resume the run"):
            next(source.parts(0, False))


class Together(Ranks):
    """Ranks that are threads; the first one's tensors are handed on."""

    def __init__(self, rank: int, slots: list[torch.Tensor], door: threading.Barrier) -> None:
        super().__init__(rank, door.parties)
        object.__setattr__(self, "shared", (slots, door))

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        slots, door = self.shared  # type: ignore[attr-defined]
        if self.first:
            slots[:] = [tensor]
        door.wait()
        found = slots[0].clone()
        door.wait()
        return found


def test_of_several_ranks_the_first_is_connected_and_all_get_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    connected, genuine = list[int](), client.SocketRows._connect
    monkeypatch.setattr(
        client.SocketRows, "_connect", lambda rows: (connected.append(rows.ranks.rank), genuine(rows))[1]
    )
    slots, door = list[torch.Tensor](), threading.Barrier(3, timeout=20)

    def read(rank: int) -> torch.Tensor:
        source = open_rows(server.address, Together(rank, slots, door))
        return torch.cat([part["y"] for part in source.parts(10, False)])

    whole = made(100)
    with (
        serve_activations(partial(pieces, whole, 30), "tcp://127.0.0.1:0", **SAID, width=D) as server,
        ThreadPoolExecutor(3) as threads,
    ):
        assert all(torch.equal(found, whole["y"][10:]) for found in threads.map(read, range(3)))
        assert connected == [0, 0]  # for the description, and for rows
        sources = list(threads.map(lambda rank: open_rows(server.address, Together(rank, slots, door)), range(3)))
        mine = sources[2].alone()  # the others are not asked
        assert torch.equal(torch.cat([part["y"] for part in mine.parts(10, False)]), whole["y"][10:])


def test_nobody_there_and_no_address_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECTING", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ResourceError, match="nobody answers at tcp://127"):
            open_rows(address, Ranks())
        taken.listen()
        with pytest.raises(ResourceError, match="cannot listen at"):
            serve_activations([], address, **SAID, width=D)
    for text in ("tcp://host", "tcp://host:port", "unix://host/path", "tcp://"):
        with pytest.raises(InputError, match="no address of a server of activations"):
            open_rows(text, Ranks())


def test_what_making_rows_raises_is_heard_on_both_sides(tmp_path: Path) -> None:
    def failing(first: int) -> Iterator[dict[str, torch.Tensor]]:
        yield from pieces(made(200), 50, first)
        raise RuntimeError("the engine is out of memory")

    with serve_activations(failing, "tcp://127.0.0.1:0", **SAID, width=D) as server:
        with pytest.raises(InputError, match=r"refused: .*making rows failed: the engine is out of memory"):
            list(batches(opened(given(server.address, tmp_path))))
        with pytest.raises(RuntimeError, match="out of memory"):
            server.wait(5)


HELLO = {"kind": "description", "held_out": False, "anywhere": True, "description": {
    "format": "circuit-tracer activations", "version": 1, **SAID, "width": D}}  # fmt: skip
ROWS = {"kind": "rows", "first": 0, "rows": 2}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak this protocol: a message begins with b'HTTP'"),
        (struct.pack(">4sIQ", b"CTA1", 10, 2**40), "sent a message of 10 and 1,099,511,627,776 bytes; at most"),
        (({"kind": "rows", "first": 7, "rows": 1}, wire.packed(made(1))), "where rows from number 0 on are expected"),
        ((ROWS, b"not tensors"), "a message of tcp.* is not a safetensors file"),
        ((ROWS, wire.packed({"x": made(2)["x"]})), "has no tensor 'y'"),
        ((ROWS, wire.packed(made(0))), "sent a message without a row"),
    ],
    ids=["http", "too large", "other rows", "no tensors", "y missing", "empty"],
)  # fmt: skip
def test_what_a_server_should_not_send_is_refused(answer: Any, message: str) -> None:
    def serve() -> None:
        for reply in ((HELLO, b""), answer):
            connection, _ = listening.accept()
            with connection:
                wire.receive(connection, "the test")
                connection.sendall(reply) if isinstance(reply, bytes) else wire.send(connection, *reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        source = open_rows(f"tcp://127.0.0.1:{listening.getsockname()[1]}", Ranks())
        with pytest.raises(FileFormatError, match=message):
            list(source.parts(0, False))
        thread.join()


def test_a_client_that_does_not_read_holds_the_server_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP's buffers fill, and no more rows are made."""
    taken: list[int] = []
    large = {"x": torch.zeros(20_000, S, D), "y": torch.zeros(20_000, S, D)}  # 2 MB a batch

    def endless(first: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            taken.append(1)
            yield large

    with serve_activations(endless, "tcp://127.0.0.1:0", **SAID, width=D) as server:
        parts = open_rows(server.address, Ranks()).parts(0, False)
        next(parts)
        threading.Event().wait(0.3)
        held = len(taken)
        threading.Event().wait(0.1)
        assert len(taken) == held < 20
        next(parts)


@pytest.mark.slow("two processes that import the trainer")
def test_a_grid_of_ranks_trains_and_evaluates_on_what_the_first_one_gets(tmp_path: Path) -> None:
    """Also where only the first one asks: of the evaluation the others know nothing."""
    rows = made(300)
    settings(tmp_path, "alone")  # makes what ranks would make at once
    with serve_activations(
        partial(pieces, rows, 30), "tcp://127.0.0.1:0", **SAID, width=D, held_out=partial(pieces, made(40, seed=1), 30)
    ) as server:
        here = {
            "data__kind": "activations",
            "data__path": server.address,
            "model__name": "tiny",
            "data__held_out": 0.01,
        }
        here |= {"data__context_length": 256, "data__sequences_per_pass": 16, "run__tokens": 64, "run__batch": 32}
        here |= {"dictionary__kind": "plt", "sparsity__dead_after_tokens": 48}
        expected = whole(tmp_path, "alone", here)
        grid = here | {"run__data_parallel": 2}
        found, silent = results(together(2, rank, tmp_path, "ranks", grid, False, folder=tmp_path, limit=60))
    assert silent == []
    assert [one.loss for one in found] == pytest.approx([one.loss for one in expected], rel=1e-4)
    nmse = [
        json.loads((tmp_path / out / "transcoder" / "evaluation.json").read_text())["results"]["dictionary"]
        for out in ("alone", "ranks")
    ]
    assert nmse[1]["reconstruction"]["mean_nmse"] == pytest.approx(nmse[0]["reconstruction"]["mean_nmse"], rel=1e-2)
