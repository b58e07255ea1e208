"""Rows that another process sends, asked for by number, so that a broken connection or a stopped run goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError, ResourceError, first_line, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.files.tensors import unpack_tensors
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.data.given.description import INPUT, check_rows, read_description
from circuit_tracer.training.data.given.wire import Address, receive, send

CONNECTING = 30.0  # seconds in which a server that is being started must answer
SILENCE = 600.0  # seconds that making some rows may take
PAUSE = 0.2  # seconds between two attempts to connect
LONGEST_MESSAGE = 1000  # characters of what a server says
TRIES = 3  # of the same rows, after connections that broke off


class SocketRows:
    """Rows of a server at ``address`` (tcp://host:port or unix:///path). See `RowSource`; TCP holds the server back.

    Of several ranks the first one is connected, and hands on what it gets. Raises InputError for an address that is none,
    ResourceError when nobody answers or the connection breaks off for good, FileFormatError for what is no activation.
    """

    def __init__(self, address: str, ranks: Ranks) -> None:
        self.where, self.ranks = address, ranks
        self._address = Address.of(address)
        header, _ = next(self._messages({"ask": "description"}))
        self.description = read_description(header.get("description"), address)
        self.apart, self._anywhere = header.get("held_out") is True, header.get("anywhere") is True
        if not (self.apart or self._anywhere):
            raise InputError(
                f"{address} sends its rows once and has no rows for evaluation besides: give serve_activations a function of "
                "the first row, or held_out"
            )

    def parts(self, first: int, held_out: bool) -> Iterator[dict[str, Tensor]]:
        """See `RowSource`."""
        tries = 0
        while True:
            try:
                for header, payload in self._messages({"ask": "rows", "first": first, "held_out": held_out}):
                    if header.get("kind") == "end":
                        return
                    part = self._part(header, payload, first)
                    first, tries = first + len(part[INPUT]), 0
                    yield part
                raise ConnectionError("the server closed the connection")
            except OSError as error:
                tries += 1
                if tries == TRIES:
                    raise ResourceError(
                        f"{self.where} broke off before row {first}: {first_line(error)}. Checkpoints keep the place: start "
                        "the server again and resume the run."
                    ) from error

    def fingerprint(self) -> dict[str, Any]:
        """What the rows are of; which rows they are, the server alone knows."""
        return self.description.facts()

    def alone(self) -> SocketRows:
        """See `RowSource`."""
        mine = copy(self)
        mine.ranks = Ranks()
        return mine

    def _part(self, header: dict[str, Any], payload: bytes, first: int) -> dict[str, Tensor]:
        if header.get("kind") != "rows" or header.get("first") != first:
            raise FileFormatError(
                f"{self.where} answered with {shortened(header)}, where rows from number {first} on are expected"
            )
        part = unpack_tensors(payload, f"a message of {self.where}")
        if not check_rows(part, self.description, f"a message of {self.where}"):
            raise FileFormatError(f"{self.where} sent a message without a row")
        return part

    def _messages(self, asked: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
        """What the server answers, on every rank; an error of its own is raised."""
        connection = self._connect() if self.ranks.first else None
        try:
            if connection is not None:
                send(connection, asked)
            while True:
                header, payload = self._shared(connection)
                if header.get("kind") == "error":
                    raise InputError(f"{self.where} refused: {str(header.get('message'))[:LONGEST_MESSAGE]}")
                yield header, payload
                if header.get("kind") == "end":
                    return
        finally:
            if connection is not None:
                connection.close()

    def _shared(self, connection: socket.socket | None) -> tuple[dict[str, Any], bytes]:
        if self.ranks.world == 1:
            assert connection is not None
            return receive(connection, self.where)
        header, payload = ({}, b"") if connection is None else receive(connection, self.where)
        texts = [
            self.ranks.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy().tobytes()
            for data in (json.dumps(header).encode(), payload or b"\0")
        ]
        shared = parse_json(texts[0], self.where)
        return shared, texts[1]

    def _connect(self) -> socket.socket:
        end = time.monotonic() + CONNECTING
        while True:
            connection = socket.socket(self._address.family, socket.SOCK_STREAM)
            try:
                connection.settimeout(CONNECTING)
                connection.connect(self._address.place)
                connection.settimeout(SILENCE)
                return connection
            except OSError as error:
                with suppress(OSError):
                    connection.close()
                if time.monotonic() > end:
                    raise ResourceError(
                        f"nobody answers at {self.where}: {error.strerror or error}. Start the server (serve_activations) "
                        "first, and check address and firewall."
                    ) from error
            time.sleep(PAUSE)
