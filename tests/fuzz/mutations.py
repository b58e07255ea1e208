"""What is done to a file: damage by bytes, and wrong content in the structure of JSON, YAML, tensor headers and archives.

A mutation takes the file's bytes and a random number generator, and returns other bytes. `of(name)` lists those that make sense
for a file of that name.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 10**30, 10**400, "", "x", "0",
    "\ud800", "\0", "../../etc/passwd", "x" * 10_000, [], {}, [[]], [None], [0, 1], {"": None}, ["a", "b"], {"a": {"b": 1}},
)  # fmt: skip
_RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "0." + "1" * 5000, '"\\ud800"', "[" * 100 + "]" * 100,
    "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "1e-999", "01", "0x10", "tru", '"', "'a'", '{"a":1,"a":2}',
)  # fmt: skip
_RAW_YAML = (
    "&a [*a]", "&a [x,x,x]", "*nowhere", "!!binary aGk=", "!!python/object/apply:os.getcwd []", "!!set {a}", ".nan", ".inf",
    "2024-01-01", "1:30:00", "1" + ":59" * 4000, "{? [a] : b}", "[" * 3000, "!!int ''", "!!bool maybe", "|\n  text\n", "\t",
    "9" * 5000, "- " * 500, "0x_", "0b", "1e999", "~", '"\\ud800"', "&a a\nmodel_kind: *a", "!<x> y",
)  # fmt: skip


def of(name: str) -> dict[str, Mutation]:
    """Mutations by name for a file of this name."""
    found = dict(ANY)
    for endings, table in _BY_ENDING.items():
        if name.endswith(endings):
            found |= table
    return found


# ---- bytes


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    """In headers, which are where most goes wrong."""
    head = data[: min(len(data), 600)]
    return _flip(head, rng) + data[len(head) :]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 100)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + data[start:]


def _zero(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 16, 512))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 64, 512))
    return data[:start] + data[start : start + length] * rng.choice((2, 3, 50)) + data[start + length :]


def _swap(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice((1, 8, 64))
    one, two = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return (
        data[:one]
        + data[two : two + length]
        + data[one + length : two]
        + data[one : one + length]
        + data[two + length :]
    )


def _extreme(data: bytes, rng: random.Random) -> bytes:
    """An integer of a size or an offset, as large or as negative as it goes."""
    start = rng.randrange(max(1, min(len(data), rng.choice((16, 200, len(data) + 1)))))
    value = rng.choice((b"\xff" * 8, b"\xff" * 4, b"\x00" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\x80"))
    return data[:start] + value + data[start + len(value) :]


def _other_content(data: bytes, rng: random.Random) -> bytes:
    others = (
        b"", b"\0", b"\n", b"{}", b"[]", b"null", b"0", b'""', b"\xef\xbb\xbf", b"\xff\xfe{\0}\0", b"\x1f\x8b", b"PK\x03\x04",
        b"\x80\x04K\x01.", b"\x93NUMPY", b"PAR1PAR1", b"<graphml/>", b"a: [", b"\xff" * 64, bytes(4096), b"{" * 100_000,
        b"[" * 1_000_000, b"- " * 10_000, b"\x08" + bytes(7) + b"{}      ", zlib.compress(bytes(10_000)),
    )  # fmt: skip
    return rng.choice(others)


def _bomb(data: bytes, rng: random.Random) -> bytes:
    """A quarter of a gibibyte in a quarter of a megabyte; nothing that reads packed data may unpack it."""
    return _BOMBS[rng.randrange(len(_BOMBS))]


def _make_bomb(filler: bytes, before: bytes, after: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(before)]
    parts += [packer.compress(filler * (2**20 // len(filler))) for _ in range(256)]
    return b"".join([*parts, packer.compress(after), packer.flush()])


class _Bombs:
    """Made when first asked for."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, which: int) -> bytes:
        if not self.made:
            self.made = [
                _make_bomb(b" ", b"{", b"}"),
                _make_bomb(b"[],", b"[", b"0]"),
                _make_bomb(b"a", b'{"0": "', b'"}'),
            ]
        return self.made[which]


_BOMBS = _Bombs()


# ---- what is no file


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


PATHS: dict[str, Callable[[Path], None]] = {
    "gone": _replaced(lambda path: None),
    "a folder": _replaced(lambda path: path.mkdir()),
    "a pipe": _replaced(lambda path: os.mkfifo(path)),
    "a link to itself": _replaced(lambda path: path.symlink_to(path)),
    "a link to nowhere": _replaced(lambda path: path.symlink_to(path.with_name("nowhere"))),
    "a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "sparse and huge": lambda path: os.truncate(path, 2**42),
}


# ---- JSON and YAML


def mutated_value(value: Any, rng: random.Random, strange: tuple[Any, ...] = STRANGE) -> Any:
    """A copy of plain values with one place changed: another value, gone, doubled, renamed, or far too deep."""
    places = list(_places(value))
    path = rng.choice(places)
    return _changed(value, path, rng, strange)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for name, each in value.items():
            found += _places(each, (*path, name))
    if isinstance(value, list):
        for index, each in enumerate(value[:20]):
            found += _places(each, (*path, index))
    return found


def _changed(value: Any, path: tuple[Any, ...], rng: random.Random, strange: tuple[Any, ...]) -> Any:
    if path:
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[path[0]] = _changed(value[path[0]], path[1:], rng, strange)
        return copy
    if isinstance(value, dict) and value and rng.random() < 0.6:
        copy, name = dict(value), rng.choice(list(value))
        what = rng.randrange(3)
        each = copy.pop(name)
        if what == 0:
            copy[rng.choice((f"{name}x", "", "-1", "1.5", "9" * 30, "\ud800"))] = each
        if what == 1:
            copy |= {name: each, rng.choice(("unknown", "", "__metadata__", "version")): rng.choice(strange)}
        return copy
    if isinstance(value, list) and value and rng.random() < 0.6:
        copy = list(value)
        index = rng.randrange(len(copy))
        copy[index : index + 1] = rng.choice(([], [copy[index]] * 2, [copy[index], rng.choice(strange)]))
        return copy
    if isinstance(value, bool | str | None) or rng.random() < 0.5:
        return rng.choice(strange)
    if isinstance(value, int | float):
        return rng.choice((-value, value + 1, value - 1, value + 0.5, value * 1000, str(value), [value], value * 1.0))
    deep: Any = value
    for _ in range(rng.choice((3, 70, 200))):
        deep = rng.choice(([deep], {"a": deep}))
    return deep


def json_text(value: Any, rng: random.Random) -> bytes:
    """JSON; one value in three is replaced by what JSON does not have, or no parser should take."""
    mark = "@" * 12
    if rng.random() < 0.35:
        value, raw = mutated_value(value, rng, (mark,)), rng.choice(_RAW)
        return json.dumps(value).replace(f'"{mark}"', raw).encode()
    try:
        return json.dumps(mutated_value(value, rng)).encode()
    except ValueError:  # ten to the 400
        return b'{"a": 1' + b"0" * 400 + b"}"


def _json(data: bytes, rng: random.Random) -> bytes:
    return json_text(json.loads(data), rng)


def _json_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = json_text(json.loads(lines[index]), rng).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


def _json_gz(data: bytes, rng: random.Random) -> bytes:
    return gzip.compress(json_text(json.loads(gzip.decompress(data)), rng), 1)


def _packed_byte(data: bytes, rng: random.Random) -> bytes:
    """Damage below the packing, where the checksum fits."""
    return gzip.compress(rng.choice((_flip, _truncate, _repeat))(gzip.decompress(data), rng), 1)


def _yaml(data: bytes, rng: random.Random) -> bytes:
    value = yaml.safe_load(data)
    mark = "at_mark"
    if rng.random() < 0.5:
        raw = rng.choice(_RAW_YAML)
        return yaml.safe_dump(mutated_value(value, rng, (mark,)), allow_unicode=True).replace(mark, raw).encode()
    try:
        return yaml.safe_dump(mutated_value(value, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
    except ValueError:
        return b"k: 1" + b"0" * 400


# ---- tensors


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    """Another header, the same bytes behind it."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = dict(header[name])
    match rng.randrange(10):
        case 0:
            entry["dtype"] = rng.choice(("F64", "I8", "BOOL", "F8_E4M3", "C64", "U64", "", "Q4", 1, None, "F4"))
        case 1:
            entry["shape"] = rng.choice(
                ([], [0], [-1], [2**62, 4], [2**40, 2**40], [1] * 40, [1.5], "3", [None], [0, 2**63])
            )
        case 2:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                (
                    [end, begin],
                    [-1, end],
                    [begin, end + 1],
                    [begin, 2**63],
                    [begin],
                    [begin, end, end],
                    [0.0, 1.5],
                    None,
                )
            )
        case 3:
            entry["shape"] = entry["shape"][::-1] or [1]
        case 4:
            others = [header[key]["data_offsets"] for key in header if key != "__metadata__"]
            entry["data_offsets"] = rng.choice(others)
        case 5:
            header.pop(name)
            entry = header.pop(rng.choice(list(header)), {}) if header else {}
        case 6:
            entry |= {"extra": 1}
        case 7:
            header["__metadata__"] = rng.choice(({"a": 1}, [], "x", None, {"a": "b" * 100_000}))
        case 8:
            metadata = dict(header.get("__metadata__", {}))
            for key, text in metadata.items():
                if isinstance(text, str) and text[:1] in "{[":
                    metadata[key] = json_text(json.loads(text), rng).decode()
            header["__metadata__"] = metadata
        case _:
            return data[:8] + json_text(header, rng)[:size].ljust(size) + data[8 + size :]
    raw = json.dumps({**header, name: entry}).encode()
    claimed = rng.choice((len(raw),) * 8 + (len(raw) - 1, len(raw) + 1, 2**63, 0))
    return struct.pack("<Q", claimed) + raw + data[8 + size :]


def _numbers(data: bytes, rng: random.Random) -> bytes:
    """NaN, infinity and denormals among the numbers."""
    (size,) = struct.unpack_from("<Q", data)
    start = 8 + size + 4 * rng.randrange(max(1, (len(data) - 8 - size) // 4))
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38, 1e-45))
    return data[:start] + struct.pack("<f", value) + data[start + 4 :]


def _zip(data: bytes, rng: random.Random) -> bytes:
    """Members renamed, dropped, doubled, packed, or with another content; the checksums fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = rng.randrange(len(members))
    name, content = members[index]
    match rng.randrange(6):
        case 0:
            members[index] = (rng.choice(("../x.npy", "x" * 300, "x.txt", "data.pkl")), content)
        case 1:
            members.pop(index)
        case 2:
            members.append((name, content))
        case 3 | 4:
            members[index] = (name, rng.choice((_flip, _flip_early, _truncate, _extreme, _repeat))(content, rng))
        case _:
            members[index] = (name, content + bytes(2**20))
    out = io.BytesIO()
    warnings.simplefilter("ignore")  # a name twice
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _npy_header(data: bytes, rng: random.Random) -> bytes:
    """The text of a numpy header, in place."""
    start = data.find(b"{'descr'")
    end = data.find(b"\n", start)
    shape = rng.choice(("(-1,)", "(9999999999999,)", "(1.5,)", "()", "(2**9,)", "(0,)", "None", "(((((((", "(True,)"))
    kind = rng.choice(("<f8", "|O", ">i4", "<c8", "<U5", "|V9", "<m8", "x", "<i4", "|b1"))
    header = f"{{'descr': '{kind}', 'fortran_order': {rng.choice((True, False, 7))}, 'shape': {shape}, }}".encode()
    return data if start < 0 else data[:start] + header.ljust(end - start)[: end - start] + data[end:]


def _xml(data: bytes, rng: random.Random) -> bytes:
    text = data.decode()
    bomb = '<!DOCTYPE g [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    numbers = [
        part for part in text.replace("<", ">").split(">") if part.strip().lstrip("-").replace(".", "", 1).isdigit()
    ]
    place = rng.choice(numbers) if numbers else "1"
    return rng.choice(
        (
            text.replace("<graphml", bomb + "<graphml", 1),
            text.replace(f">{place}<", f">{rng.choice(('nan', 'inf', '1e999', 'x', '-1', '1.5', '9' * 5000, ''))}<", 1),
            text.replace("<node", "<node>" * 500 + "<node", 1),
            text.replace('attr.type="long"', 'attr.type="double"', 1),
            text.replace("<edge", '<edge source="x" target="y"/><edge', 1),
            text.replace("<data", "<date", 1),
        )
    ).encode()


ANY: dict[str, Mutation] = {
    "flip": _flip,
    "flip early": _flip_early,
    "truncate": _truncate,
    "delete": _delete,
    "insert": _insert,
    "zero": _zero,
    "repeat": _repeat,
    "swap": _swap,
    "extreme": _extreme,
    "other content": _other_content,
}
_JSON_TABLE: dict[str, Mutation] = {f"json {number}": _json for number in range(10)}
_BY_ENDING: dict[str | tuple[str, ...], dict[str, Mutation]] = {
    ".json": _JSON_TABLE,
    ".jsonl": {f"json line {number}": _json_line for number in range(10)},
    ".json.gz": {f"packed json {number}": _json_gz for number in range(8)}
    | {"packed byte": _packed_byte, "bomb": _bomb},
    (".yaml", ".yml"): {f"yaml {number}": _yaml for number in range(12)},
    ".safetensors": {f"header {number}": _safetensors for number in range(10)} | {"numbers": _numbers},
    (".npz", ".pt"): {f"archive {number}": _zip for number in range(6)},
    (".npz", ".npy"): {f"numpy header {number}": _npy_header for number in range(4)},
    ".graphml": {f"xml {number}": _xml for number in range(6)},
}
