"""Rows of prompts: what the three kinds of files say, and what becomes of lines that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.many import Row, read_rows
from circuit_tracer.many.rows import file_name

ROWS = [
    Row("a", "the capital of", ["Austin", "id:7"], "1", {"city": "Dallas", "year": 1841}),
    Row("b", [4, 5, 6], None, "true", {"city": "Paris", "year": None}),
    Row("c", [{"role": "user", "content": "hello"}], ["Austin"], None, {"city": None, "year": 3}),
]
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "the capital of", "targets": ["Austin", "id:7"], "label": 1, "city": "Dallas", "year": 1841},
    {"id": "b", "tokens": [4, 5, 6], "label": True, "city": "Paris", "year": None},
    {"id": "c", "chat": "hello", "targets": "Austin", "city": None, "year": 3},
]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("\n\n".join(each if isinstance(each, str) else json.dumps(each) for each in records))
    return path


def test_jsonl(tmp_path: Path) -> None:
    found = read_rows(write_jsonl(tmp_path / "p.jsonl", RECORDS))
    assert [(row.id, row.prompt, row.targets, row.label, row.problem) for row in found] == [
        (row.id, row.prompt, row.targets, row.label, None) for row in ROWS
    ]
    assert found[0].extra == ROWS[0].extra
    assert [Row.from_json(json.loads(json.dumps(row.to_json()))) for row in found] == found


def test_csv_says_the_same_in_text(tmp_path: Path) -> None:
    lines = [
        "\ufeffid,prompt,tokens,chat,targets,label,city",
        'a,the capital of,,,"[""Austin"", ""id:7""]",1,Dallas',
        "b,,4 5 6,,,true,Paris",
        'c,,,"[{""role"": ""user"", ""content"": ""hello""}]",Austin,,',
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines), encoding="utf-8")
    found = read_rows(tmp_path / "p.csv")
    assert [(row.id, row.prompt, row.targets, row.label) for row in found] == [
        (row.id, row.prompt, row.targets, row.label) for row in ROWS
    ]
    assert [row.extra for row in found] == [{"city": "Dallas"}, {"city": "Paris"}, {}]


def test_parquet(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "prompt": ["x y", None], "tokens": [None, [1, 2]], "score": [float("nan"), 0.5]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert read_rows(str(tmp_path / "p.parquet")) == [
        Row("a", "x y", extra={"score": None}),
        Row("b", [1, 2], extra={"score": 0.5}),
    ]


BAD = {
    "no JSON": ("{", "line 1 is not readable JSON"),
    "no object": ("[1]", "expected an object"),
    "nothing to trace": ({"label": "x"}, "has none of prompt, tokens, chat"),
    "two things to trace": ({"prompt": "x", "tokens": [1]}, "has prompt and tokens"),
    "a prompt that is no text": ({"prompt": 3}, "prompt is 3"),
    "tokens that are no ids": ({"tokens": ["a"]}, "tokens is"),
    "targets of another kind": ({"prompt": "x", "targets": [1.5]}, "targets is"),
    "a label of another kind": ({"prompt": "x", "label": [1]}, "label is"),
    "an id of another kind": ({"prompt": "x", "id": [1]}, "id is"),
    "an id too long for a file": ({"prompt": "x", "id": "é" * 70}, "too long"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_read_is_a_row_with_a_problem(case: str, tmp_path: Path) -> None:
    line, said = BAD[case]
    bad, good = read_rows(write_jsonl(tmp_path / "p.jsonl", [line, {"prompt": "x"}]))
    assert said in str(bad.problem)
    assert good == Row("000002", "x")


def test_cells_too_many_and_bytes_that_are_no_text_are_problems_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"prompt,note\nx,1\ny\nz,\xff\n\xff,\n,3\nq,\n")
    found = read_rows(tmp_path / "p.csv")
    problems = [row.problem is not None for row in found]
    assert problems == [False, True, False, True, False, False]
    assert found[4].prompt == ""  # which is refused when it is traced


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets_in_csv(separator: str, tmp_path: Path) -> None:
    """A mark of UTF-8 in front, the separator of the country, lines of empty cells, texts of any length."""
    lines = ["id,prompt,label", 'r1,"the capital, of; Texas\tis",A', ",,", "", f"r2,{'x ' * 70_000},B", ",,"]
    lines = [
        lines[0].replace(",", separator),
        lines[1].replace("r1,", f"r1{separator}").replace('",A', f'"{separator}A'),
    ] + [each.replace(",", separator) for each in lines[2:]]
    (tmp_path / "p.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert read_rows(tmp_path / "p.csv") == [
        Row("r1", "the capital, of; Texas\tis", label="A"),
        Row("r2", "x " * 70_000, label="B"),
    ]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_another_encoding_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('id,prompt\nr1,"x"\n', encoding="utf-16")
    with pytest.raises(FileFormatError, match=r"is UTF-16.*Save it as that"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("p.jsonl", "\n\n", InputError, "holds no rows"),
        ("p.csv", "", InputError, "holds no rows"),
        ("p.csv", "a,b\n1,2\n", FileFormatError, "names none of the columns"),
        ("p.csv", 'prompt\n"x', FileFormatError, "not readable CSV"),
        ("p.parquet", "PAR1", FileFormatError, "cannot be read as parquet"),
        ("p.txt", "x", InputError, "ends in .txt"),
        ("p.jsonl", '{"id": "A", "prompt": "x"}\n{"id": "a", "prompt": "y"}', InputError, "rows 1 and 2 have one id"),
    ],
)
def test_files_that_are_refused(name: str, text: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file of prompts"):
        read_rows(tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"the file of prompts is 'memory://nowhere\.jsonl'"):
        read_rows("memory://nowhere.jsonl")


@pytest.mark.parametrize("id", ["a/../b", ".hidden", "ü", "a b", "%2E", "con\n"])
def test_ids_are_names_of_files(id: str, tmp_path: Path) -> None:
    name = file_name(id)
    (tmp_path / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not name.startswith(".")
