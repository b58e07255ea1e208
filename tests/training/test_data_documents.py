"""Documents come in one order, from any place in it; what cannot be read says why."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, ResourceError
from circuit_tracer.files.places import find_places
from circuit_tracer.text import documents, text_files
from circuit_tracer.text.documents import Document, Documents
from circuit_tracer.text.hub import HubDataset
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.kinds import READERS, open_documents
from circuit_tracer.text.packing import sequence_length
from circuit_tracer.text.parquet import ParquetFiles
from circuit_tracer.text.source import Kind, TextSource
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles
from tests.support import data_cases

TEXTS = [*data_cases.texts(40), "zwölf Boxkämpfer", "東京は日本の首都です。", ""]


def all_of(documents: Documents, cursor: Any = None) -> list[Any]:
    return [plain(document) for document, _ in documents.read(cursor)]


def plain(document: Document) -> Any:
    return document if isinstance(document, str) else document.tolist()


def write_parquet(path: Path, texts: list[str | None]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `datasets`")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `datasets`")
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, path, row_group_size=7)


def text_source(folder: Path) -> Documents:
    for number, some in enumerate((TEXTS[:10], TEXTS[10:])):
        (folder / f"{number}.txt").write_text("\n\n".join(some), encoding="utf-8")
    (folder / "notes.bin").write_bytes(b"\xff")
    return TextFiles(str(folder))


def jsonl_source(folder: Path) -> Documents:
    data_cases.write_jsonl(folder / "a.jsonl", TEXTS[:10])
    data_cases.write_jsonl(folder / "b.jsonl", TEXTS[10:])
    return JsonLines(str(folder / "*.jsonl"), "text")


def parquet_source(folder: Path) -> Documents:
    write_parquet(folder / "a.parquet", [*TEXTS[:10], None])
    write_parquet(folder / "b.parquet", list(TEXTS[10:]))
    return ParquetFiles(str(folder), "text")


def hub_source(folder: Path) -> Documents:
    pytest.importorskip("datasets", reason="needs the extra `datasets`")
    jsonl_source(folder)
    return HubDataset(str(folder), None, "train", "text")


def saved_source(folder: Path) -> Documents:
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    data = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    data.save_to_disk(str(folder / "saved"))
    return HubDataset(str(folder / "saved"), None, "train", "text")


def token_source(folder: Path) -> Documents:
    np.save(folder / "a.npy", np.array([5, 6, 2, 7, 2, 8, 9, 10], np.uint16))
    save_file({"m": torch.arange(6).view(2, 3), "k": torch.tensor([4, 2, 3])}, folder / "b.safetensors")
    return TokenFiles(str(folder), 2)


SOURCES: dict[str, Callable[[Path], Documents]] = {
    "text": text_source,
    "jsonl": jsonl_source,
    "parquet": parquet_source,
    "hub": hub_source,
    "saved": saved_source,
    "tokens": token_source,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_goes_on_from_every_cursor(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 40)
    source = SOURCES[kind](tmp_path)
    whole = all_of(source)
    cursors = [json.loads(json.dumps(cursor)) for _, cursor in source.read(None)]
    assert len(whole) > 5
    assert all_of(source) == whole
    for number, cursor in enumerate(cursors, 1):
        assert all_of(source, cursor) == whole[number:]
    assert source.fingerprint() == SOURCES[kind](tmp_path).fingerprint()


@pytest.mark.parametrize("read", ["whole", "in part"])
@pytest.mark.parametrize("place", [0, 150_000, -1])
def test_other_bytes_of_the_same_number_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, place: int
) -> None:
    monkeypatch.setattr(documents, "READ_WHOLE", 10**6 if read == "whole" else 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 300_000)
    before = TextFiles(str(path)).fingerprint()
    assert before["read"] == read
    os.utime(path, (0, 0))
    assert TextFiles(str(path)).fingerprint() == before
    changed = bytearray(path.read_bytes())
    changed[place] = ord("y")
    path.write_bytes(changed)
    assert TextFiles(str(path)).fingerprint() != before


@pytest.mark.parametrize("kind", ["jsonl", "hub", "saved"])
def test_documents_are_the_texts(kind: str, tmp_path: Path) -> None:
    assert all_of(SOURCES[kind](tmp_path)) == TEXTS


def test_null_is_an_empty_document(tmp_path: Path) -> None:
    assert all_of(parquet_source(tmp_path)) == [*TEXTS[:10], "", *TEXTS[10:]]
    (tmp_path / "c.jsonl").write_text('{"text": null}\n\n{"text": "a"}')
    assert all_of(JsonLines(str(tmp_path / "c.jsonl"), "text")) == ["", "a"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=300), st.integers(4, 50))
@settings(max_examples=60, deadline=None)
def test_a_text_is_cut_without_loss(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    file = tmp_path_factory.mktemp("texts") / "book.txt"
    file.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "DOCUMENT_BYTES", size)
        documents = all_of(TextFiles(str(file)))
    assert "".join(documents) == text
    assert all(documents)
    assert all(len(document.encode()) <= 2 * size + 4 for document in documents)


def test_a_text_is_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 10)
    (tmp_path / "book.txt").write_text("one two\nthree four\n\nfive\nsix seven\n\neight")
    assert all_of(TextFiles(str(tmp_path))) == ["one two\nthree four\n\n", "five\nsix seven\n\n", "eight"]


def test_running_tokens_are_cut_at_the_end_token(tmp_path: Path) -> None:
    assert all_of(token_source(tmp_path)) == [[5, 6, 2], [7, 2], [8, 9, 10], [4, 2], [3], [0, 1, 2], [3, 4, 5]]


def test_files_are_sorted_and_found_by_folder_or_pattern(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "deep/c.txt", "a.txt", "d.csv"):
        (tmp_path / name).write_text("x")
    expected = [tmp_path / name for name in ("a.txt", "b.txt", "deep/c.txt")]
    for path, found in (
        (tmp_path, expected),
        (tmp_path / "**/*.txt", expected),
        (tmp_path / "d.csv", [tmp_path / "d.csv"]),
    ):
        assert [place.name for place in find_places(str(path), (".txt",))] == list(map(str, found))


@pytest.mark.parametrize("path", ["nothing.txt", "*.txt", "."])
def test_no_file_is_an_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.path is .* Give a file, a folder, a pattern"):
        TextFiles(str(tmp_path / path))


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{", FileFormatError, "line 2 is not readable JSON"),
        ("[1]", FileFormatError, "line 2, holds list; an object with a field 'text'"),
        ('{"body": "a", "id": 1}', InputError, "line 2, has no field 'text'; found 'body', 'id'"),
        ('{"text": 3}', InputError, "field 'text' holds int, not text"),
    ],
)
def test_a_bad_line_is_named(line: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(error, match=message):
        all_of(JsonLines(str(tmp_path / "a.jsonl"), "text"))


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"a\.txt is not UTF-8 text: byte 3 is 0xe9"):
        all_of(TextFiles(str(tmp_path)))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a"])
    with pytest.raises(InputError, match=r"no column 'body'; found 'id', 'text'. Set data.field"):
        all_of(ParquetFiles(str(tmp_path), "body"))
    with pytest.raises(InputError, match="column 'id' holds int64, not text"):
        all_of(ParquetFiles(str(tmp_path), "id"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(FileFormatError, match="cannot be read as parquet"):
        all_of(ParquetFiles(str(tmp_path), "text"))


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.zeros(3), "type float64"), (np.zeros((2, 2, 2), int), r"shape \(2, 2, 2\)"), (np.zeros(2, bool), "type bool")],
    ids=["float", "three dimensions", "bool"],
)
def test_arrays_that_are_no_token_ids_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FileFormatError, match=message):
        all_of(TokenFiles(str(tmp_path), None))


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_a_broken_token_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01")
    with pytest.raises(FileFormatError, match=name):
        all_of(TokenFiles(str(tmp_path), None))


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"a\.npy"):
        all_of(TokenFiles(str(tmp_path), None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "nothing"}, "data.split 'nothing'"),
        ({"name": "nothing"}, "data.name 'nothing'"),
        ({"path": "nobody/nothing"}, "data set 'nobody/nothing'"),
    ],
    ids=["split", "name", "path"],
)
def test_a_data_set_that_is_not_there(change: dict[str, str], message: str, tmp_path: Path) -> None:
    hub_source(tmp_path)
    where = {"path": str(tmp_path), "name": None, "split": "train", "field": "text", **change}
    with pytest.raises(InputError, match=message):
        HubDataset(**where)  # type: ignore[arg-type]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    hub_source(tmp_path)
    with pytest.raises(InputError, match="has no field 'body'; found 'text'"):
        all_of(HubDataset(str(tmp_path), None, "train", "body"))


def test_a_stream_that_breaks_off_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub_source(tmp_path)

    class Broken:
        def __iter__(self) -> Any:
            yield {"text": "a"}
            raise ConnectionError("the line is cut")

        def state_dict(self) -> None:
            return None

    monkeypatch.setattr(source, "_open", Broken)
    with pytest.raises(ResourceError, match=r"broke off: the line is cut Checkpoints keep the place"):
        all_of(source)


@pytest.mark.parametrize(("kind", "package"), [("hub", "datasets"), ("parquet", "pyarrow")])
def test_a_missing_extra_says_what_to_install(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}", name=package)
        return genuine(name, *rest)

    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CircuitTracerError, match=rf"{package}.*pip install 'circuit-tracing\[datasets\]'"):
        HubDataset(str(tmp_path), None, "train", "text") if kind == "hub" else ParquetFiles(str(tmp_path), "text")


def test_every_kind_of_source_has_a_reader_and_another_kind_is_refused() -> None:
    assert tuple(READERS) == get_args(Kind)
    with pytest.raises(InputError, match="kind 'pdf' is unknown; use one of huggingface, text, jsonl"):
        open_documents(TextSource(cast(Kind, "pdf"), "book.pdf"), None)


def test_sequences_have_two_tokens_or_more() -> None:
    assert [sequence_length(*given) for given in ((None, None), (None, 64), (512, 64), (None, 64, 32))] == [
        256,
        64,
        512,
        32,
    ]
    with pytest.raises(InputError, match="context_length is 1; a sequence has at least 2 tokens"):
        sequence_length(1, None)
