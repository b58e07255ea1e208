"""Turn unpacked Debian packages into plain documents, one JSON object {"source", "text"} a line, in a fixed shuffled order.

    corpus.py packages                         the packages to download, one a line
    corpus.py build UNPACKED OUT.jsonl         UNPACKED/<package>/usr/..., as `dpkg -x` leaves it

Only the standard library is used, and the same packages always give the same file. `corpus.sh` does all of it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
DOCUMENT = (
    4000  # characters of a document, about: longer texts are cut between paragraphs, so that a shuffle mixes them
)
LEAST = 200  # shorter documents are dropped
ARTICLES = 8  # dictionary articles of a document


# --- text ---------------------------------------------------------------------------------------------------------------


def unwrap(text: str) -> str:
    """Join the lines of each paragraph. Indented blocks of several lines that look like code keep their lines."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        code = (
            len(lines) > 1
            and sum(bool(re.search(r"[{}=<>|\\]\s*$|^\s*[#$%>]", line)) for line in lines) > len(lines) / 3
        )
        paragraphs.append("\n".join(lines) if code else " ".join(line.strip() for line in lines))
    return "\n\n".join(paragraphs)


def pieces(text: str, size: int = DOCUMENT) -> Iterator[str]:
    """Cut a text between paragraphs into pieces of at least ``size`` characters; a short rest joins the last piece."""
    held: list[str] = []
    length, ready = 0, None
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        length += len(paragraph) + 2
        if length >= size:
            if ready is not None:
                yield ready
            ready, held, length = "\n\n".join(held), [], 0
    rest = "\n\n".join(held)
    if ready is None:
        yield rest
    elif length < size / 4:
        yield f"{ready}\n\n{rest}" if rest else ready
    else:
        yield ready
        yield rest


class _Page(HTMLParser):
    """The readable text of a page: paragraphs apart, preformatted text as it is, navigation and scripts left out."""

    HIDDEN = frozenset({"script", "style", "head", "nav", "footer", "form", "button", "svg", "noscript"})
    BLOCKS = frozenset({
        "p", "div", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "dt", "dd", "li", "table",
        "tr", "pre", "blockquote", "br", "hr", "main", "header",
    })  # fmt: skip
    # of Sphinx, DocBook and mdBook
    NAVIGATION = re.compile(
        r"related|sphinxsidebar|navheader|navfooter|docnav|toc\b|sidebar|nav-|menu-bar|headerlink|footer"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []  # open elements since a hidden one
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = " ".join(value or "" for name, value in attrs if name in ("class", "id", "role"))
        if tag in ("br", "hr", "img", "meta", "link", "input", "col"):
            self.parts.append("\n" if tag == "br" and self._pre else " ")
        elif self._hidden or tag in self.HIDDEN or (tag not in ("html", "body") and self.NAVIGATION.search(names)):
            self._hidden.append(tag)
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._pre -= tag == "pre" and self._pre > 0
        if self._hidden:
            if tag in self._hidden:  # elements left open inside (p, li) end with it
                while self._hidden.pop() != tag:
                    pass
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data if self._pre else re.sub(r"\s+", " ", data))


def plain(page: str) -> str:
    """The text of an HTML page."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    text = "".join(parser.parts).replace("\xa0", " ").replace("¶", "")
    return re.sub(r"\n\s*\n", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def read(path: Path) -> str:
    """A text file, compressed or not; bytes that are no UTF-8 are read as Latin-1."""
    raw = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        raw = gzip.decompress(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# --- kinds of sources ---------------------------------------------------------------------------------------------------


def _number(digits: str) -> int:
    """A number of a dictd index: base 64."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value


def articles(base: Path) -> Iterator[str]:
    """The articles of a dictd dictionary (``base``.index, ``base``.dict.dz) in the order of the book."""
    body = gzip.decompress(Path(f"{base}.dict.dz").read_bytes())
    spans = set()
    for line in Path(f"{base}.index").read_text(encoding="utf-8", errors="replace").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00"):  # facts about the data base
            spans.add((_number(start), _number(length)))
    for start, length in sorted(spans):
        yield body[start : start + length].decode("utf-8", errors="replace")


def dictionary(base: Path) -> Iterator[str]:
    """Articles in groups, without the marks of cross references, pronunciations and sources."""
    group: list[str] = []
    for article in articles(base):
        text = re.sub(
            r"\[(1913 Webster|PJC|WordNet [0-9.]+|[0-9]{4}-[0-9-]+|Obs\.|R\.)[^\]]*\]|\([0-9]{4}-[0-9]{2}-[0-9]{2}\)",
            "",
            article,
        )
        text = re.sub(r"\\[^\\\n]{1,60}\\ *(\([^)\n]*\))?", "", text)  # \Ab"bess\ ([a^]b"b[e^]s)
        text = re.sub(r"\{([^{}]*)\}", r"\1", text)
        head, _, rest = text.strip().partition("\n")
        apart = rest and not re.search(r"[,(\[]", head)  # a headword on a line of its own
        text = unwrap(f"{head}\n\n{rest}" if apart else f"{head}\n{rest}")
        if len(text) > 40:
            group.append(re.sub(r" {2,}", " ", text))
        if len(group) == ARTICLES:
            yield "\n\n".join(group)
            group = []
    if group:
        yield "\n\n".join(group)


def pages(files: Iterable[Path]) -> Iterator[str]:
    """HTML pages."""
    for file in files:
        yield from pieces(plain(read(file)))


def texts(files: Iterable[Path]) -> Iterator[str]:
    """Plain text, reStructuredText and POD, lines of a paragraph joined."""
    for file in files:
        text = re.sub(
            r"^(\.\. .*|[=\-~*^\"#`+]{3,}|=\w+ ?)$|^=\w+ |[A-Z]<([^<>]*)>", r"\2", read(file), flags=re.MULTILINE
        )
        yield from pieces(unwrap(text))


def sayings(files: Iterable[Path]) -> Iterator[str]:
    """Fortune files: entries between lines of a single %, several to a document."""
    for file in files:
        entries = [entry.strip("\n").expandtabs(4) for entry in re.split(r"^%\n", read(file), flags=re.MULTILINE)]
        yield from pieces("\n\n".join(re.sub(r"\n\s*\n", "\n", entry) for entry in entries if entry), DOCUMENT // 2)


def bible(file: Path) -> Iterator[str]:
    """Chapters, without the numbers of verses."""
    for chapter in re.split(r"\n(?=(?:[1-3] )?[A-Z][A-Za-z ]+ [0-9]+\n)", read(file)):
        if not chapter.strip():
            continue
        title, _, body = chapter.strip().partition("\n")
        verses = re.sub(r"^\s*[0-9]+ ", "\n", body, flags=re.MULTILINE)
        joined = [" ".join(verse.split()) for verse in verses.split("\n\n")]
        yield from pieces(f"{title}\n\n" + "\n".join(verse for verse in joined if verse))


# --- the corpus ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Some files of a package, how they are read, and how many characters of them are wanted at most."""

    package: str
    characters: int
    documents: Callable[[Path], Iterator[str]]  # from the folder of the unpacked package


def _files(reader: Callable[[Iterable[Path]], Iterator[str]], *patterns: str) -> Callable[[Path], Iterator[str]]:
    def documents(folder: Path) -> Iterator[str]:
        return reader(sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file()))

    return documents


def _dict(name: str) -> Callable[[Path], Iterator[str]]:
    return lambda folder: dictionary(folder / "usr/share/dictd" / name)


MILLION = 1_000_000
DOC = "usr/share/doc"
SOURCES = (
    Source("dict-gcide", 3 * MILLION, _dict("gcide")),
    Source("dict-wn", 1 * MILLION, _dict("wn")),
    Source("dict-foldoc", 1 * MILLION, _dict("foldoc")),
    Source("dict-jargon", MILLION // 2, _dict("jargon")),
    Source("dict-devil", MILLION // 2, _dict("devil")),
    Source("bible-kjv-text", 3 * MILLION // 2, lambda folder: bible(folder / "bible.txt")),
    Source("display-dhammapada", MILLION, _files(texts, "usr/share/display-dhammapada/dhammapada-english-transl.txt")),
    Source("fortunes", 3 * MILLION // 2, _files(sayings, "usr/share/games/fortunes/*[a-z]")),
    Source("anarchism", 2 * MILLION, _files(pages, f"{DOC}/anarchism/html/*.html")),
    Source("python3.11-doc", MILLION, _files(pages, f"{DOC}/python3.11/html/[fhltw]*/*.html")),
    Source("rust-doc", MILLION // 2, _files(pages, f"{DOC}/rust-doc/html/book/ch*.html")),
    Source("perl-doc", MILLION // 2, _files(texts, "usr/share/perl/*/pod/perl[fiort]*.pod")),
    Source("linux-doc-6.1", MILLION // 2, _files(texts, f"{DOC}/linux-doc-6.1/Documentation/process/*.rst.gz")),
    Source("debian-handbook", MILLION, _files(pages, f"{DOC}/debian-handbook/html/en-US/*.html")),
    Source("debian-faq", MILLION // 2, _files(texts, f"{DOC}/debian/FAQ/debian-faq.en.txt.gz")),
)
TOOLS = ("bible-kjv",)  # packages with no text of their own


def build(unpacked: Path) -> list[dict[str, str]]:
    """All documents, shuffled. Raises FileNotFoundError when a package has none."""
    chosen: list[tuple[str, str, str]] = []
    for source in SOURCES:
        ranked = sorted(_ranked(source.package, source.documents(unpacked / source.package)))
        if not ranked:
            raise FileNotFoundError(f"no documents of {source.package} under {unpacked}: download and unpack it there")
        chosen += [(rank, source.package, text) for rank, text in _first(ranked, source.characters, lambda one: one[1])]
    chosen.sort(key=lambda one: one[0][::-1])  # by the key as it was taken, large sources would come first
    return [{"source": name, "text": text} for _, name, text in chosen]


def _ranked(name: str, documents: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(pseudo-random key, document): what decides which are taken, and their order. Repeated and short ones are dropped."""
    seen = set()
    for text in documents:
        key = hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()
        if len(text) >= LEAST and key not in seen:
            seen.add(key)
            yield key, text


def _first(items: list[Item], characters: int | None, text_of: Callable[[Item], str]) -> Iterator[Item]:
    """Items from the first on until their texts have so many characters together; None: all."""
    taken = 0
    for item in items:
        if characters is not None and taken >= characters:
            return
        taken += len(text_of(item))
        yield item


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("packages", help="list the packages")
    building = commands.add_parser("build", help="write the corpus")
    building.add_argument("unpacked", type=Path)
    building.add_argument("out", type=Path)
    building.add_argument("--characters", type=int, help="how many go to OUT; without it, all")
    building.add_argument("--held-out", type=Path, help="file for documents after those, a quarter as many characters")
    given = parser.parse_args(arguments)
    if given.command == "packages":
        print("\n".join([*TOOLS, *(source.package for source in SOURCES)]))
        return
    documents = build(given.unpacked)
    chosen = list(_first(documents, given.characters, _text))
    _write(given.out, chosen)
    if given.held_out is not None:
        rest, size = documents[len(chosen) :], sum(len(_text(document)) for document in chosen)
        _write(given.held_out, list(_first(rest, size // 4, _text)))


def _text(document: dict[str, str]) -> str:
    return document["text"]


def _write(path: Path, documents: list[dict[str, str]]) -> None:
    """Write the file, then say what is in it."""
    temporary = path.with_suffix(".part")
    with open(temporary, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    temporary.replace(path)
    print(path)
    for name in sorted({document["source"] for document in documents}):
        sizes = [len(_text(document)) for document in documents if document["source"] == name]
        print(f"  {name:20} {sum(sizes):>10,} characters in {len(sizes):>5,} documents")


if __name__ == "__main__":
    main(sys.argv[1:])
