"""A comparison of two graphs as one HTML file: both graphs, what changed, and the account of the change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuit_tracer.files import atomic_write
from circuit_tracer.many.comparison.schema import Comparison
from circuit_tracer.viewer.page import data_block, page_of


def comparison_page(record: Comparison | dict[str, Any]) -> str:
    """The text of a self-contained HTML page that shows a comparison, offline and from disk.

    record: a comparison, or what its ``to_json`` made. The graphs have the same places in all of the page's pictures.
    Raises FileFormatError for other values, InputError for numbers that are not finite.
    """
    found = record if isinstance(record, Comparison) else Comparison.from_json(record)
    return page_of(f"{found.target} – comparison", [data_block("comparison-data", found.to_json())])


def write_comparison_page(record: Comparison | dict[str, Any], path: str | Path) -> Path:
    """Write ``comparison_page(record)``; the file appears when it is complete. Returns its path."""
    text = comparison_page(record)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
