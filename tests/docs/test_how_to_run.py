"""The code blocks of docs/how-to run, a folder a page (tests/support/run_blocks.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.code_blocks import ROOT
from tests.support.run_blocks import RUNNABLE, run_page

pytestmark = pytest.mark.slow("traces, tests and trains what the pages do: seconds a page")

HOW_TO = ROOT / "docs" / "how-to"
PAGES = [page for page in RUNNABLE if HOW_TO in page.parents]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch)
