"""The SmolLM2 recipe: its corpus script, on packages of a few lines, and its configuration."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from circuit_tracer.training.config.files import load

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2"
LONG = "It was a bright day and the clocks were about to strike. " * 6


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_corpus", RECIPE / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def base64_number(value: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return digits[value] if value < 64 else base64_number(value // 64) + digits[value % 64]


def write_dictionary(base: Path, articles: list[str]) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    index, body = ["00databaseshort\tA\tB"], b"x"
    for number, article in enumerate(articles):
        raw = article.encode()
        index.append(f"word{number}\t{base64_number(len(body))}\t{base64_number(len(raw))}")
        body += raw
    Path(f"{base}.dict.dz").write_bytes(gzip.compress(body))
    Path(f"{base}.index").write_text("\n".join(sorted(index)) + "\n")


def test_dictionary(corpus: ModuleType, tmp_path: Path) -> None:
    article = 'Abbess \\Ab"bess\\ ([a^]b"b[e^]s), n.\n   A female {superior}\n   of a nunnery.\n   [1913 Webster]\n'
    write_dictionary(tmp_path / "d", [article] + [f"Word{i}\n   {LONG}\n" for i in range(corpus.ARTICLES)])
    documents = list(corpus.dictionary(tmp_path / "d"))
    assert len(documents) == 2
    assert documents[0].startswith("Abbess , n. A female superior of a nunnery.\n\nWord0")


def test_pages_leave_navigation_out(corpus: ModuleType) -> None:
    page = """<html class="sidebar-visible"><head><title>T</title></head><body><nav>Home</nav>
      <div class="related"><p>next<ul><li>index</ul></div><h1>Title<a class="headerlink">¶</a></h1>
      <p>One &amp;
      two</p><pre>a = 1\n  b = 2</pre><script>x()</script></body></html>"""
    assert corpus.plain(page) == "Title\n\nOne & two\n\na = 1\n  b = 2"


def test_bible(corpus: ModuleType, tmp_path: Path) -> None:
    text = "\nGenesis 1\n\n  1 In the\nbeginning.\n  2 And\n\n1 Samuel 1\n\n  1 Now there was.\n"
    (tmp_path / "bible.txt").write_text(text)
    assert list(corpus.bible(tmp_path / "bible.txt")) == [
        "Genesis 1\n\nIn the beginning.\nAnd",
        "1 Samuel 1\n\nNow there was.",
    ]


def test_sayings(corpus: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "wit").write_text("One.\n\t-- A\n%\nTwo.\n%\n")
    assert list(corpus.sayings([tmp_path / "wit"])) == ["One.\n    -- A\n\nTwo."]


def test_texts_keep_code_and_join_prose(corpus: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_text("Title\n=====\n\nSome\nprose.\n\n    if (x) {\n        y =\n    }\n")
    assert list(corpus.texts([tmp_path / "a.rst"])) == ["Title\n\nSome prose.\n\n    if (x) {\n        y =\n    }"]


def test_pieces_lose_nothing(corpus: ModuleType) -> None:
    text = "\n\n".join(f"{i} " + "x" * (i % 37) for i in range(200))
    cut = list(corpus.pieces(text, 300))
    assert "\n\n".join(cut) == text
    assert len(cut) > 5
    assert all(len(piece) >= 75 for piece in cut)


def unpacked(corpus: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages; the second has more than is wanted of it."""
    for name, n_files in (("small", 2), ("large", 9)):
        for number in range(n_files):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{number}.txt").write_text(f"{name} {number} {LONG}")
    read = corpus._files(corpus.texts, "*.txt")
    sources = (corpus.Source("small", 10_000, read), corpus.Source("large", 4 * len(LONG), read))
    monkeypatch.setattr(corpus, "SOURCES", sources)
    return folder


def test_build_is_mixed_capped_and_the_same_every_time(
    corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(corpus, tmp_path / "unpacked", monkeypatch)
    outputs = []
    for name in ("a", "b"):
        corpus.main(["build", str(folder), str(tmp_path / name)])
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1]
    documents = [json.loads(line) for line in outputs[0].splitlines()]
    assert sorted(document["source"] for document in documents) == ["large"] * 4 + ["small"] * 2
    assert len({document["text"] for document in documents}) == 6
    held_out = ["--characters", str(2 * len(LONG)), "--held-out", str(tmp_path / "d")]
    corpus.main(["build", str(folder), str(tmp_path / "c"), *held_out])
    lines = outputs[0].splitlines()
    assert (tmp_path / "c").read_bytes().splitlines() == lines[:2]
    assert (tmp_path / "d").read_bytes().splitlines() == lines[2:3]


def test_missing_package_is_named(corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpacked(corpus, tmp_path, monkeypatch)
    for file in (folder / "small").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no documents of small"):
        corpus.build(folder)


def test_configuration_is_valid_and_reads_what_the_script_writes() -> None:
    config = load(str(RECIPE / "config.yaml"), {})
    assert config.data.path == "corpus/corpus.jsonl"
    assert "$folder/corpus.jsonl" in (RECIPE / "corpus.sh").read_text()
