"""Messages between who makes activations and who trains on them (docs/how-to/activations.md): length, a JSON header, tensors.

A message is 16 bytes (`CTA1`, length of the header as uint32, of the payload as uint64, big-endian), the header, a JSON object,
and the payload, nothing or one safetensors file. What arrives is read under limits, and nothing of it is executed.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from safetensors.torch import save
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import parse_json

MAGIC = b"CTA1"
PREFIX = struct.Struct(">4sIQ")
LARGEST_HEADER, LARGEST_PAYLOAD = 2**20, 2**30  # bytes
READ_AT_A_TIME = 2**22  # bytes
PROTOCOLS = ("tcp", "unix")


class Address(NamedTuple):
    """Where a server listens: what the socket library takes."""

    family: socket.AddressFamily
    place: Any

    @classmethod
    def of(cls, text: str) -> Address:
        """Of tcp://host:port or unix:///path. Raises InputError."""
        parts = urlsplit(text)
        try:
            if parts.scheme == "tcp" and parts.hostname and parts.port is not None and not parts.path.strip("/"):
                family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
                return cls(family, (parts.hostname, parts.port))
            if parts.scheme == "unix" and parts.path and not parts.netloc:
                return cls(socket.AF_UNIX, parts.path)
        except ValueError:  # of a port that is no number
            pass
        raise InputError(
            f"{text!r} is no address of a server of activations: tcp://host:port or unix:///path is expected"
        )


def is_server(path: str) -> bool:
    """Whether a path is the address of a server."""
    return path.partition("://")[0] in PROTOCOLS and "://" in path


def send(connection: socket.socket, header: Mapping[str, Any], payload: bytes = b"") -> None:
    """Send a message; waits as long as the other side does not read."""
    text = json.dumps(header).encode()
    connection.sendall(PREFIX.pack(MAGIC, len(text), len(payload)) + text)
    if payload:  # else the other side may have answered, and gone
        connection.sendall(payload)


def receive(connection: socket.socket, source: str) -> tuple[dict[str, Any], bytes]:
    """(header, payload) of the next message. ConnectionError when the other side is gone, FileFormatError for anything else
    than a message, naming `source`.
    """
    magic, header_bytes, payload_bytes = PREFIX.unpack(_exactly(connection, PREFIX.size))
    if magic != MAGIC:
        raise FileFormatError(f"{source} does not speak this protocol: a message begins with {magic!r}, not {MAGIC!r}")
    if header_bytes > LARGEST_HEADER or payload_bytes > LARGEST_PAYLOAD:
        raise FileFormatError(
            f"{source} sent a message of {header_bytes:,} and {payload_bytes:,} bytes; at most {LARGEST_HEADER:,} and "
            f"{LARGEST_PAYLOAD:,} are read. Send fewer rows at a time."
        )
    header = parse_json(_exactly(connection, header_bytes), f"the header of a message of {source}")
    if not isinstance(header, dict):
        raise FileFormatError(f"the header of a message of {source} is no JSON object")
    return header, _exactly(connection, payload_bytes)


def packed(part: Mapping[str, Tensor]) -> bytes:
    """Tensors as a payload."""

    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in part.items()}))


def _exactly(connection: socket.socket, n_bytes: int) -> bytes:
    data = bytearray()  # grows with what comes, whatever was announced
    while len(data) < n_bytes:
        read = connection.recv(min(n_bytes - len(data), READ_AT_A_TIME))
        if not read:
            raise ConnectionError("the other side closed the connection")
        data += read
    return bytes(data)
