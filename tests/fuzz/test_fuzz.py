"""A hundred mutations and more of every reader with a fixed seed; `python -m tests.fuzz` runs ten thousand and more."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.errors import FileFormatError
from tests.fuzz.outcomes import BAD, Bench
from tests.fuzz.reader import Reader, digest
from tests.fuzz.readers import READERS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and alarms are POSIX")
SEED, SHORT, LONG = 7, 12, 120


def _name(reader: Reader) -> str:
    return reader.name.replace(" ", "-").replace(",", "")


@pytest.mark.few
@pytest.mark.parametrize("reader", [each for each in READERS if not each.slow], ids=_name)
@pytest.mark.filterwarnings("ignore")
def test_no_mutation_fails_hangs_or_loads_as_what_it_is_not(reader: Reader, tmp_path: Path) -> None:
    _try(reader, tmp_path, SHORT)


@pytest.mark.slow("a hundred mutations and more of each reader: a minute")
@pytest.mark.parametrize("reader", READERS, ids=_name)
@pytest.mark.filterwarnings("ignore")
def test_no_mutation_of_many_fails(reader: Reader, tmp_path: Path) -> None:
    _try(reader, tmp_path, LONG)


def _try(reader: Reader, folder: Path, number: int) -> None:
    bench = Bench(reader, folder)
    results = [bench.attempt(SEED, each) for each in range(number)]
    bad = [result for result in results if result.outcome in BAD]
    assert not bad, "\n".join(f"{each.outcome}: {each.file} {each.mutation} {each.number}: {each.said}" for each in bad)
    assert any(result.outcome == "refused" for result in results)


def _careless(folder: Path) -> Any:
    """A reader such as this test is there to find."""
    document = json.loads((folder / "a.json").read_text())
    if "sizes" not in document:
        raise FileFormatError("no sizes")
    return sum(document["sizes"])


def test_a_careless_reader_is_found_out(tmp_path: Path) -> None:
    reader = Reader("careless", lambda folder: (folder / "a.json").write_text('{"sizes": [1, 2]}'), _careless)
    bench = Bench(reader, tmp_path)
    outcomes = {bench.attempt(SEED, each).outcome for each in range(40)}
    assert {"failed", "refused"} <= outcomes


def test_a_sealed_reader_may_not_load_another_document(tmp_path: Path) -> None:
    reader = Reader(
        "sealed", lambda folder: (folder / "a.bin").write_bytes(bytes(40)), lambda folder: (folder / "a.bin").read_bytes(),
        sealed=True,
    )  # fmt: skip
    bench = Bench(reader, tmp_path)
    assert "wrong" in {bench.attempt(SEED, each).outcome for each in range(20)}


def test_the_same_seed_makes_the_same_mutations(tmp_path: Path) -> None:
    reader = next(each for each in READERS if each.name == "labels")
    one, two = (Bench(reader, tmp_path / name) for name in "ab")
    for number in range(10):
        first, second = one.attempt(SEED, number), two.attempt(SEED, number)
        assert (first.file, first.mutation, first.outcome) == (second.file, second.mutation, second.outcome)
        assert digest(first.number) == digest(second.number)


@pytest.mark.slow("takes 1.9 s")
def test_a_run_counts_outcomes_and_survives_a_reader_that_dies(tmp_path: Path) -> None:
    from tests.fuzz.__main__ import report, run

    def die(folder: Path) -> Any:
        if (folder / "a.json").read_bytes() != b"[1]":
            import os

            os._exit(3)
        return 1

    dies = Reader("dies", lambda folder: (folder / "a.json").write_text("[1]"), die)
    results = run([dies], SEED, 2, workers=1)
    assert [result.outcome for result in results] == ["failed", "failed"]
    assert "died (3)" in results[0].said
    path = tmp_path / "fuzz.json"
    report(results, argparse.Namespace(only=None, readers=None, seed=SEED, results=path), 1.0)
    assert json.loads(path.read_text())["outcomes"] == {"failed": 2}
