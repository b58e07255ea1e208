"""JSON and YAML from files nobody wrote for us: plain values, or a FileFormatError that a person can read."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, shortened
from circuit_tracer.files import DEEPEST, parse_json, parse_toml, parse_yaml, read_bytes, read_json, unpack, validated

GOOD_JSON = {
    "brackets in strings": '{"a": "[[[[{{\\"]", "b": "\\\\", "c": "]\\\\\\"["}',
    "as deep as allowed": "[" * DEEPEST + "]" * DEEPEST,
    "empty pairs side by side": "[" + ",".join(["[]", "{}"] * 200) + "]",
    "byte-order mark": "\ufeff[1]",
    "largest integers": f"[{2**63 - 1}, {-(2**63)}]",
    "long digits in strings and fractions": '["12345678901234567890123", 0.12345678901234567890123, 1e308, 1E-400]',
    "whole pairs of surrogates": '["\\ud83d\\ude00", "\\\\ud83d"]',
    "a float of many digits": "[1234567890123456789012345.5]",
}

BAD_JSON = {
    "empty": "",
    "white space": " \n",
    "cut short": '{"a": [1, 2',
    "deeper than allowed": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "objects deeper than allowed": '{"a":[' * 40 + "]}" * 40,
    "very deep": "[" * 1_000_000 + "]" * 1_000_000,
    "very deep without an end": '{"a":[' * 1_000_000,
    "deep after a string with an escape": '["\\"]", ' + "[" * 5000 + "]" * 5001,
    "deep, with strings between": '["x", ' * 5000 + "1" + "]" * 5000,
    "brackets of the other kind": "[" * 100 + "}" * 100,
    "integer beyond 64 bits": str(2**63),
    "integer of absurd length": "9" * 100_000,
    "float beyond any range": "[1e400]",
    "float beyond any range, with a sign": "[-1E+999999]",
    "float beyond any range, written out": "[" + "9" * 400 + ".0]",
    "NaN": "[NaN]",
    "infinity": "[-Infinity]",
    "a key given twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
    "half a surrogate pair": '["\\ud83d"]',
    "halves of surrogate pairs in the wrong order": '["\\ude00\\ud83d"]',
    "two values": "1 2",
    "a lone surrogate": "['\ud83d']",
}

BAD_YAML = {
    "aliases": "a: &a [1]\nb: *a",
    "aliases without end": "a: &a [*a]",
    "deep": "[" * 5000,
    "deep blocks": "- " * 5000,
    "a key given twice": "a: 1\na: 2",
    "keys that are lists": "? [1, 2]\n: 3",
    "keys that are mappings": "? {a: 1}\n: 3",
    "binary": "a: !!binary aGk=",
    "a set": "a: !!set {b}",
    "Python objects": "a: !!python/object/apply:os.system [ls]",
    "a tag without end": f"a: !{'x' * 100_000} 1",
    "an explicit date": "a: !!timestamp 2024-01-01",
    "NaN": "a: .nan",
    "infinity": "a: -.inf",
    "an integer of absurd length": "a: " + "9" * 100_000,
    "sixties without end": "a: 1" + ":30" * 50_000,
    "an integer that is none": 'a: !!int ""',
    "a truth value that is none": "a: !!bool perhaps",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x01",
    "half a surrogate pair": 'a: "\\ud83d"',
    "a character beyond all": 'a: "\\UFFFFFFFF"',
    "too long": "- a\n" * 100_000,
}


@pytest.mark.parametrize("text", GOOD_JSON.values(), ids=GOOD_JSON)
def test_json_is_what_the_standard_library_reads(text: str) -> None:
    assert parse_json(text, "x.json") == json.loads(text.removeprefix("\ufeff"))
    assert parse_json(text.encode(), "x.json") == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_refused_shortly_and_in_no_time(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"x\.json") as caught:
        parse_json(text, "x.json")
    assert len(str(caught.value)) < 500


def test_depth_is_refused_in_a_thread_with_a_small_stack() -> None:
    outcomes: list[Any] = []

    def parse() -> None:
        for text in BAD_JSON.values():
            try:
                outcomes.append(parse_json(text, "x"))
            except CircuitTracerError as error:
                outcomes.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=parse)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert [type(outcome) for outcome in outcomes] == [FileFormatError] * len(BAD_JSON)


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_bad_yaml_is_refused_shortly_and_in_no_time(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(FileFormatError, match=r"x\.yaml") as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - began < 5


def test_yaml_that_grows_by_aliases_is_refused_at_once() -> None:
    """Nine lines that stand for a billion items."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(FileFormatError, match="aliases are not read; write the value out") as caught:
        parse_yaml("\n".join([*lines, "model_kind: *a9"]), "config.yaml")
    assert len(str(caught.value)) < 300


def test_ordinary_yaml_is_read_as_ever() -> None:
    text = "\ufeffa: 1\nb: [yes, 0x10, 1_000, 1.5e+3, null, 2024-01-01]\nc: {d: 'x', 3: e}\nf: {<<: {g: 1}, h: 2}"
    assert parse_yaml(text, "x") == {
        "a": 1, "b": [True, 16, 1000, 1500.0, None, "2024-01-01"], "c": {"d": "x", 3: "e"}, "f": {"g": 1, "h": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a = 2024-01-01", "a = nan", "a = inf", f"a = {2**70}", "a = 1\na = 2", "a = " + "[" * 9999]
)
def test_bad_toml_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"x\.toml"):
        parse_toml(text, "x.toml")


class _Row(BaseModel):
    names: list[str]
    size: int


def test_a_schema_says_what_does_not_fit_without_printing_it() -> None:
    with pytest.raises(FileFormatError) as caught:
        validated(_Row, {"names": [["x" * 10_000] * 1000] * 100, "size": "y" * 100_000}, "rows.json")
    message = str(caught.value)
    assert "rows.json" in message
    assert "names.0" in message
    assert "and 96 more" in message
    assert len(message) < 1500
    assert validated(_Row, {"names": ["a"], "size": 2}, "rows.json") == _Row(names=["a"], size=2)


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [[["x" * 1000] * 1000] * 1000] * 1000, {i: i for i in range(10**5)}, 10**5000], ids=type
)
def test_values_are_shortened_for_messages(value: Any) -> None:
    assert len(shortened(value)) <= 101


# ---- packed


def test_gzip_and_zlib_are_unpacked() -> None:
    data = os.urandom(3 * 2**20)
    for packed in (
        gzip.compress(data),
        zlib.compress(data),
        gzip.compress(data[:5]) + gzip.compress(data[5:]) + b"\0\0",
    ):
        assert unpack(packed, "x") == data
    assert unpack(gzip.compress(b""), "x") == b""


def _damaged() -> dict[str, bytes]:
    packed = gzip.compress(os.urandom(10_000), mtime=0)
    return {
        "empty": b"",
        "cut short": packed[:-5],
        "header alone": packed[:10],
        "a flipped bit": packed[:5000] + bytes([packed[5000] ^ 1]) + packed[5001:],
        "wrong checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
        "garbage behind": packed + b"garbage",
        "not packed": b"{}",
        "bomb": gzip.compress(bytes(200 * 2**20), 9),
        "bomb in parts": gzip.compress(bytes(2**20), 9) * 100,
    }


DAMAGED = _damaged()


@pytest.mark.parametrize(("name", "packed"), DAMAGED.items(), ids=DAMAGED)
def test_damage_and_bombs_are_refused(name: str, packed: bytes) -> None:
    with pytest.raises(FileFormatError, match=r"x\.gz"):
        unpack(packed, "x.gz")


def test_a_bomb_takes_no_memory() -> None:
    resource = pytest.importorskip("resource")
    packed = gzip.compress(bytes(300 * 2**20), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileFormatError, match="unpacks to more than 1,000 bytes"):
        unpack(packed, "x", largest=1000)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100 * 2**20


# ---- paths


def _no_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere").symlink_to(folder / "missing")
    return {
        "missing": folder / "missing",
        "a folder": folder,
        "a pipe": folder / "pipe",
        "a device": Path("/dev/zero"),
        "a link to itself": folder / "loop",
        "a link to nowhere": folder / "nowhere",
        "a zero byte": folder / "a\0b",
        "a name too long": folder / ("x" * 5000),
        "below a file": Path(__file__) / "x",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links have no names there")
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    for name, path in _no_files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_bytes(path, 100)
        assert len(str(caught.value)) > 20, name


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with open(path, "wb") as file:
        file.truncate(10**12)
    with pytest.raises(FileFormatError, match="1,000,000,000,000 bytes"):
        read_json(path)


def test_a_small_file_takes_no_room_for_the_largest_one(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"[1]")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small", 2**44) == b"[1]"
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("grown", [1, 2**20, 3 * 2**20 + 5])
def test_a_file_that_grows_while_it_is_read_is_read_whole_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    path, whole = tmp_path / "growing", os.urandom(100 + grown)
    path.write_bytes(whole)
    short = os.stat_result([*os.stat(path)[:6], 100, *os.stat(path)[7:10]])
    monkeypatch.setattr(os, "fstat", lambda _: short)
    assert read_bytes(path, len(whole)) == whole
    with pytest.raises(FileFormatError, match=f"at most {len(whole) - 1:,}"):
        read_bytes(path, len(whole) - 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="has files without a size on Linux alone")
def test_a_file_that_says_no_size_is_read_too() -> None:
    assert b"Name:" in read_bytes("/proc/self/status", 2**20)


def test_json_is_read_plain_or_packed(tmp_path: Path) -> None:
    for name, data in (("a.json", b"\xef\xbb\xbf[1]"), ("a.json.gz", gzip.compress(b"[1]"))):
        (tmp_path / name).write_bytes(data)
        assert read_json(tmp_path / name) == [1]
    (tmp_path / "bad").write_bytes(b'["\xff"]')
    with pytest.raises(FileFormatError, match="not text in UTF-8: byte 2 is ff"):
        read_json(tmp_path / "bad")
