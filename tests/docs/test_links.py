"""Links of the Markdown beside the documentation arrive: README.md, CONTRIBUTING.md, and the README.md of each folder.

Those of docs/ itself are followed in the built site (test_site.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.code_blocks import ROOT

FOLDERS = ("benchmarks", "circuit_tracer", "examples", "kernels", "notebooks", "recipes")
PAGES = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
# what a document names by its place in the repository
NAMED = re.compile(r"`((?:docs|examples|notebooks|recipes|benchmarks)/[\w./-]+\.(?:md|py|ipynb|json|sbatch))`")


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_arrive(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    links = ["".join(found) for found in LINK.findall(re.sub(r"`[^`]*`", "", text))]
    for link in (each.partition("#")[0] for each in links if not re.match(r"[a-z]+:", each)):
        assert not link or (page.parent / unquote(link)).exists(), f"{page.relative_to(ROOT)} links to {link}"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_files_that_are_named_are_there(page: Path) -> None:
    for name in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"
