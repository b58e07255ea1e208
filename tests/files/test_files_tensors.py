"""Tensor files that lie: headers, archives and pickles that claim more, or other things, than their file holds."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.files.torch_archive import load_torch_archive


def safetensors(header: Any, data: bytes = bytes(16), claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), **extra: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


BAD_HEADERS = {
    "empty": b"",
    "no header": bytes(7),
    "a header beyond the file": safetensors({}, claimed=2**40),
    "a header of exabytes": safetensors({}, claimed=2**63),
    "no JSON": safetensors(b"{]"),
    "deep": safetensors(b'{"a":' * 5000),
    "no object": safetensors([]),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "a tensor given twice": safetensors(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2)),
    "an entry that is none": safetensors({"a": 3}),
    "an entry with more": safetensors({"a": entry(extra=1)}),
    "no such type": safetensors({"a": entry("F4")}),
    "a type that is no text": safetensors({"a": entry(["F32"])}),
    "fractions": safetensors({"a": entry(shape=[4.0])}),
    "truth for a number": safetensors({"a": entry(shape=[True], offsets=[0, 4])}, bytes(4)),
    "a negative extent": safetensors({"a": entry(shape=[-4])}),
    "a product beyond 64 bits": safetensors({"a": entry(shape=[2**40, 2**40])}),
    "none of very many": safetensors({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}, b""),
    "very many axes": safetensors({"a": entry(shape=[1] * 100, offsets=[0, 4])}, bytes(4)),
    "offsets the wrong way": safetensors({"a": entry(offsets=[16, 0])}),
    "negative offsets": safetensors({"a": entry(offsets=[-16, 0])}),
    "three offsets": safetensors({"a": entry(offsets=[0, 16, 16])}),
    "offsets beyond the file": safetensors({"a": entry(offsets=[2**40, 2**40 + 16])}),
    "a hole": safetensors({"a": entry(offsets=[4, 20])}, bytes(20)),
    "an overlap": safetensors({"a": entry(), "b": entry(offsets=[8, 24])}, bytes(24)),
    "the same bytes twice": safetensors({"a": entry(), "b": entry()}),
    "bytes that no tensor has": safetensors({"a": entry()}, bytes(20)),
    "cut short": safetensors({"a": entry()}, bytes(12)),
    "metadata that are no texts": safetensors({"__metadata__": {"a": 1}, "a": entry()}),
    "metadata that are a list": safetensors({"__metadata__": [], "a": entry()}),
}


@pytest.mark.parametrize("data", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_that_does_not_describe_its_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"a\.safetensors") as caught:
        open_tensor_file(path)
    assert len(str(caught.value)) < 600


def test_what_safetensors_writes_is_read_as_it_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    kinds = [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint64,
        torch.uint16,
        torch.bool,
    ]
    tensors = {f"{kind}": torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    save_file({**tensors, "none": torch.zeros(0, 3), "one": torch.tensor(2.5)}, path, {"a": "b"})
    opened = open_tensor_file(path)
    assert opened.metadata == {"a": "b"}
    for name, tensor in load_file(path).items():
        assert torch.equal(opened.tensor(name), tensor), name
    save_file({}, path)
    assert open_tensor_file(path).entries == {}


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    opened = open_tensor_file(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FileFormatError, match="became shorter"):
        opened.tensor("a")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        opened.tensor("a")


# ---- npz


def npy(shape: Any = (4,), descr: Any = "<f4", data: bytes = bytes(16)) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


BAD_ARCHIVES = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(99),
    "no array": archive({"a.npy": b"hello"}),
    "objects": archive({"a.npy": npy(descr="|O")}),
    "big-endian": archive({"a.npy": npy(descr=">f4")}),
    "texts": archive({"a.npy": npy(descr="<U4")}),
    "dates": archive({"a.npy": npy(descr="<M8[s]")}),
    "fields": archive({"a.npy": npy(descr=[("x", "<f4")])}),
    "more than there is": archive({"a.npy": npy((2**40,))}),
    "less than there is": archive({"a.npy": npy((3,))}),
    "a negative extent": archive({"a.npy": npy((-4,))}),
    "a product beyond 64 bits": archive({"a.npy": npy((2**40, 2**40))}),
    "a shape that is none": archive({"a.npy": npy("x")}),
    "another member": archive({"a.npy": npy(), "run.py": b"1"}),
    "cut short": archive({"a.npy": npy()})[:-30],
    "a bomb": archive({"a.npy": npy((2**30,))[:128] + bytes(2**20)}, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("data", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_an_archive_that_does_not_hold_what_it_says_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"a\.npz"):
        open_tensor_file(path)


def test_damage_in_a_packed_member_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random(1000))
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match="cannot be read"):
        open_tensor_file(path).tensor("a")


def test_arrays_of_numpy_are_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    assert torch.equal(open_tensor_file(tmp_path / "a.npy").tensor(""), torch.from_numpy(array))
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="cut short"):
        open_tensor_file(tmp_path / "b.npy")


# ---- .pt


def _itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def _doubling() -> list[Any]:
    made: list[Any] = ["x"]
    for _ in range(60):
        made = [made, made]
    return made


def _deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(200):
        made = [made]
    return made


BAD_PICKLES: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "without data": lambda: torch.empty(10**12, device="meta"),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "expanded": lambda: torch.zeros(1).expand(10**6, 10**6),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "in itself": _itself,
    "doubling": _doubling,
    "deep": _deep,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", BAD_PICKLES.values(), ids=BAD_PICKLES)
def test_tensors_that_are_not_plain_are_refused(make: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": make()}, path)
    with pytest.raises(FileFormatError, match=r"a\.pt"):
        load_torch_archive(path, [])


def test_plain_tensors_and_values_come_back(tmp_path: Path) -> None:
    path, weight = tmp_path / "a.pt", torch.randn(4, 6)
    content = {
        "view": weight[1:3],
        "transposed": weight.t(),
        "text": "ü",
        "list": [1, (2.5, None)],
        "none": torch.zeros(0),
    }
    torch.save(content, path)
    loaded = load_torch_archive(path, [])
    assert torch.equal(loaded["transposed"], weight.t())
    assert torch.equal(loaded["view"], weight[1:3])
    assert loaded["list"] == [1, (2.5, None)]


def test_damaged_and_packed_archives_of_torch_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        members = {info.filename: opened.read(info) for info in opened.infolist()}
    place = whole.index(struct.pack("<2f", 500.0, 501.0))
    pickled = next(name for name in members if name.endswith("data.pkl"))
    longer = {**members, pickled: members[pickled].replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f")}
    for data, message in (
        (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "checksum"),
        (archive(members, zipfile.ZIP_DEFLATED), "packed"),
        (whole[:-100], "cut short"),
        (archive(longer), "damaged or no torch file"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=message):
            load_torch_archive(path, [])
