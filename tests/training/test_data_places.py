"""Files that are packed or lie in a store give the documents that plain ones give; several data sets keep their shares."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError
from circuit_tracer.files import places
from circuit_tracer.text import text_files
from circuit_tracer.text.corpus import ListedDocuments
from circuit_tracer.text.documents import Documents
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.kinds import kind_of_file
from circuit_tracer.text.mixture import TOKEN, MixedDocuments
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles
from tests.support import data_cases
from tests.support.data_cases import batches, config, same, stream


def _zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="needs the extra `zstd`")
    half = len(data) // 2  # two frames, as of a file that was appended to
    packed: bytes = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def plain_files(folder: Path) -> dict[str, Documents]:
    """A reader by the name of its file."""
    folder.mkdir()
    data_cases.write_jsonl(folder / "a.jsonl", data_cases.texts(12))
    (folder / "b.txt").write_text("\n\n".join(data_cases.texts(12, seed=1)))
    np.save(folder / "c.npy", np.arange(60, dtype=np.uint16).reshape(6, 10))
    return {path.name: reader(str(path)) for path in sorted(folder.iterdir())}


def reader(path: str) -> Documents:
    kinds: dict[str, Callable[[], Documents]] = {
        "jsonl": lambda: JsonLines(path, "text"),
        "text": lambda: TextFiles(path),
        "tokens": lambda: TokenFiles(path, None),
    }
    return kinds[kind_of_file(path)]()


def all_of(documents: Documents, cursor: Any = None) -> list[tuple[Any, Any]]:
    found = documents.read(json.loads(json.dumps(cursor)))
    return [(one if isinstance(one, str) else one.tolist(), behind) for one, behind in found]


@pytest.mark.parametrize("suffix", [*PACKERS, "memory://"])
def test_documents_are_those_of_plain_files(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 40)
    monkeypatch.setattr(text_files, "READ_AT_A_TIME", 1)  # as little as an end of a document needs
    for name, documents in plain_files(tmp_path / "plain").items():
        data, expected = (tmp_path / "plain" / name).read_bytes(), all_of(documents)
        if suffix in PACKERS:
            path = str(tmp_path / f"{name}{suffix}")
            Path(path).write_bytes(PACKERS[suffix](data))
        else:
            system, root = places.open_system(f"{suffix}{tmp_path.name}/{name}")
            system.pipe(root, data)
            path = f"{suffix}{tmp_path.name}/*{Path(name).suffix}"
        found = reader(path)
        assert all_of(found) == expected
        assert len(expected) > 5
        for number, (_, cursor) in enumerate(expected, 1):
            assert all_of(found, cursor) == expected[number:]
        assert found.fingerprint() == reader(path).fingerprint()


def test_a_folder_is_searched_for_packed_files_too(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt.gz", "d.gz"):
        (tmp_path / name).write_bytes(b"")
    system, root = places.open_system(f"memory://{tmp_path.name}")
    system.pipe({f"{root}/deep/e.jsonl.xz": b"", f"{root}/f.txt": b""})
    for path, names in ((str(tmp_path), ["a.jsonl", "b.jsonl.gz"]), (f"memory://{tmp_path.name}", ["e.jsonl.xz"])):
        assert [place.file_name for place in places.find_places(path, (".jsonl",))] == names


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix != ".zst"])
@pytest.mark.parametrize("damage", ["cut short", "not packed"])
def test_a_damaged_packed_file_is_named(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    packed = PACKERS[suffix](b'{"text": "a"}\n' * 50)
    path.write_bytes(packed[: len(packed) // 2] if damage == "cut short" else b'{"text": "a"}\n')
    with pytest.raises(FileFormatError, match=rf"a\.jsonl\{suffix} is damaged or cut short"):
        all_of(JsonLines(str(path), "text"))


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("memory://nothing/a.txt", InputError, r"data\.path is 'memory://nothing/a\.txt'"),
        ("nonsense://a", InputError, r"Protocol not known.*Addresses are those of fsspec, such as s3://"),
        ("s3://bucket/a.txt", CircuitTracerError, "s3://bucket/a.txt cannot be opened: Install s3fs"),
    ],
)
def test_an_address_that_cannot_be_opened_says_why(address: str, error: type[Exception], message: str) -> None:
    if address.startswith("s3"):
        try:
            import s3fs  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(error, match=message):
        TextFiles(address)


# ---- several data sets


def mixed() -> MixedDocuments:
    parts = [ListedDocuments([letter * size for size in sizes]) for letter, sizes in LENGTHS.items()]
    return MixedDocuments(parts, [5.0, 3.0, 1.0])


LENGTHS = {"a": [7, 0, 9, 3, 8] * 6, "b": [2, 4, 3], "c": [30, 1, 0]}


def test_shares_hold_at_every_place_and_an_epoch_is_over_when_all_was_read() -> None:
    read, passes = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    for document, cursor in mixed().read(None):
        for part, name in enumerate("abc"):
            read[name], passes[name] = cursor[part][2], cursor[part][3]
        shares = [read[name] / weight for name, weight in zip("abc", (5, 3, 1), strict=True)]
        assert max(shares) - min(shares) <= max(9 / 5, 4 / 3, 30 / 1)
        assert set(document) <= set("abc")
    assert min(passes.values()) == 1  # the last one
    assert passes["b"] > 5


def test_a_mixture_goes_on_from_every_cursor() -> None:
    whole = all_of(mixed())
    for number, (_, cursor) in enumerate(whole, 1):
        assert all_of(mixed(), cursor) == whole[number:]
    for cursor in ([1, 2], [[None, 0, 0]] * 3, "x", [[None, -1, 0, 0]] * 3):
        with pytest.raises(FileFormatError, match="the position in the data is"):
            all_of(mixed(), cursor)


def test_a_document_is_held_out_in_every_pass_or_in_none() -> None:
    cursor, numbers = None, []
    for number, (document, behind) in enumerate(mixed().read(None)):
        if "b" in document:
            numbers.append(mixed().own_number(number, cursor))
        cursor = behind
    assert numbers[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_an_empty_part_is_named() -> None:
    with pytest.raises(InputError, match=r"part 2 of data\.mixture holds no document"):
        list(MixedDocuments([ListedDocuments(["a"]), ListedDocuments([])], [1.0, 1.0]).read(None))
    ids = np.array([1, 2])
    tokens = ListedDocuments([])
    tokens.read = lambda cursor: iter([] if cursor else [(ids, 1)])  # type: ignore[method-assign]
    assert [behind[0][2] for _, behind in MixedDocuments([tokens], [1.0]).read(None)] == [TOKEN * len(ids)]


@pytest.mark.slow("takes 1.4 s")
@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
def test_a_stream_of_several_data_sets_resumes_and_is_cached(kind: str, tmp_path: Path) -> None:
    parts = []
    for name, weight in (("web", 3.0), ("code", 1.0)):
        (tmp_path / name).mkdir()
        data_cases.write_jsonl(tmp_path / name / "data.jsonl", data_cases.texts(40, seed=int(weight), longest=30))
        parts.append({"path": str(tmp_path / name), "weight": weight, "kind": kind})
    if kind == "huggingface":
        pytest.importorskip("datasets", reason="needs the extra `datasets`")
    settings = config(tmp_path, data__path=None, data__mixture=parts)
    whole, expected, states = stream(settings), [], []
    while (batch := whole.next()) is not None:
        expected.append(batch)
        states.append(json.loads(json.dumps(whole.state())))
    assert states[-1]["start"]["rows"]["packer"]["cursor"] is not None
    for step in (1, len(expected) // 2, len(expected) - 2):
        resumed = stream(settings)
        resumed.restore(states[step - 1])
        assert all(same(*pair) for pair in zip(batches(resumed), expected[step:], strict=True))
    for _ in range(2) if kind == "jsonl" else ():
        cached = stream(config(tmp_path, data__path=None, data__mixture=parts, data__cache=tmp_path / "cache"))
        assert all(same(*pair) for pair in zip(batches(cached), expected, strict=True))
