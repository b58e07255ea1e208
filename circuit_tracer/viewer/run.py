"""A run over many prompts as one HTML file: its rows, families of prompts, what graphs have in common, and the graphs."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import atomic_write
from circuit_tracer.many.aggregate import Aggregate
from circuit_tracer.many.rows import file_name
from circuit_tracer.many.runs.opened import Run
from circuit_tracer.many.runs.store import Store
from circuit_tracer.viewer.document import viewer_document
from circuit_tracer.viewer.page import data_block, page_of

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels

MOST_GRAPHS = 32 * 2**20  # bytes of packed graphs in one file
MOST_ITEMS = 200  # rows of a table of features
_LEVEL = 9


def run_document(run: Run, labels: Labels | None = None) -> dict[str, Any]:
    """What the page shows of a run: {name, settings, fingerprints, rows, families, features, labels, graphs}.

    rows: those of the table, each with "extra", the other columns of the prompts file, and "family". families, features,
    labels: of `circuit-tracer aggregate`, None before it; features have their ``labels`` where graphs keep none. graphs: None;
    they are asked for one by one.
    """
    found = _aggregate(run)
    called = _Names(labels or {})
    of_row = {} if found is None else _family_of(found)
    rows = [
        {**values, "extra": dict(row.extra), "family": of_row.get(row.id)}
        for row, values in zip(run.rows, run.table, strict=True)
    ]
    return {
        "name": PurePosixPath(run.address.rstrip("/")).name or "run",
        "settings": run.settings,
        "fingerprints": run.fingerprints,
        "rows": [_plain(row) for row in rows],
        "families": None if found is None else _families(found, called),
        "features": None if found is None else _features(found, called),
        "labels": None if found is None else _labels(found, called),
        "graphs": None,
    }


def row_document(
    run: Run, id: str, labels: Labels | None = None, node_threshold: float = 0.8, edge_threshold: float = 0.98
) -> Mapping[str, Any]:
    """Viewer JSON of a row's graph. Raises InputError for a row that there is not, or that has no graph."""
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    return viewer_document(run.graph(id), labels=labels, slug=file_name(id)[:200], **thresholds)


def run_page(
    run: Run,
    *,
    labels: Labels | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most_graphs: int = MOST_GRAPHS,
) -> str:
    """The text of a self-contained HTML page of a run, offline and from disk; graphs are pruned and packed into it.

    labels: of features, for those that the graphs do not name. most_graphs: bytes of graphs that enter the page, medoids of
    families first; the page lists all rows, and says of the others that their graphs are not in it.
    """
    document = run_document(run, labels)
    families = (document["families"] or {}).get("families", [])
    first = [family["medoid"] for family in families]
    done = set(run.ids)
    order = [id for id in dict.fromkeys([*first, *run.ids]) if id in done]
    packed = ((id, _packed(row_document(run, id, labels, node_threshold, edge_threshold))) for id in order)
    document["graphs"] = _within(packed, most_graphs)
    return page_of(f"{document['name']} – run", [data_block("run-data", document)])


def write_run_page(run: Run, path: str | Path, **options: Any) -> Path:
    """Write ``run_page(run, **options)``; the file appears when it is complete. Returns its path."""
    text = run_page(run, **options)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _within(packed: Iterable[tuple[str, str]], most: int) -> dict[str, str]:
    """As many as there is room for, in their order."""
    kept, size = dict[str, str](), 0
    for id, text in packed:
        size += len(text)
        if size > most:
            break
        kept[id] = text
    return kept


def _packed(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), _LEVEL, mtime=0)).decode()


def _aggregate(run: Run) -> Aggregate | None:
    """The run's aggregate, if there is one."""
    if not Store.at(run.address).exists("aggregate/families.json"):
        return None
    return Aggregate.read(run.address)


def _family_of(found: Aggregate) -> dict[str, int]:
    try:
        return {id: each["family"] for each in found.overview["families"] for id in each["members"]}
    except (KeyError, TypeError) as error:
        raise FileFormatError(
            f"families.json of the run is damaged ({error!r}); make it again: circuit-tracer aggregate"
        ) from error


class _Names:
    """Names of features in tables."""

    def __init__(self, labels: Labels) -> None:
        self.labels = dict[Any, str](labels.items())

    def of(self, row: Mapping[str, Any]) -> str:
        """The name that a table has, else the label, else ""."""
        return row["name"] or self.labels.get((row["layer"], row["index"]), "")


def _families(found: Aggregate, called: _Names) -> dict[str, Any]:
    def named(family: Mapping[str, Any]) -> dict[str, Any]:
        return {**family, "features": [{**each, "name": called.of(each)} for each in family["features"]]}

    return {**found.overview, "families": [named(family) for family in found.overview["families"]]}


def _features(found: Aggregate, called: _Names) -> list[dict[str, Any]]:
    """The features with the most influence."""
    columns = ("frequency", "frequency_low", "frequency_high", "influence", "influence_low", "influence_high")
    rows = _rows(found.features, ("item", "layer", "index", "name", *columns))
    rows.sort(key=lambda row: -row["influence"])
    return [{**row, "name": called.of(row)} for row in rows[:MOST_ITEMS]]


def _labels(found: Aggregate, called: _Names) -> list[dict[str, Any]] | None:
    """Features and edges that tell labels apart, the surest first; None without labels."""
    if "auc" not in found.labels:
        return None
    names = {row["item"]: called.of(row) for row in _rows(found.features, ("item", "layer", "index", "name"))}
    rows = _rows(found.labels, ("item", "label", "auc", "auc_low", "auc_high", "q"))
    rows.sort(key=lambda row: (math.inf if row["q"] is None else row["q"], -abs((row["auc"] or 0.5) - 0.5)))
    return [{**row, "name": _in_words(row["item"], names)} for row in rows[:MOST_ITEMS]]


def _in_words(item: str, names: Mapping[str, str]) -> str:
    """A feature's name, or those of an edge's ends; "" if there is none."""
    ends = item.split(" -> ")
    return " → ".join(names.get(end) or end for end in ends) if any(names.get(end) for end in ends) else ""


def _rows(columns: Mapping[str, Any], names: Iterable[str]) -> list[dict[str, Any]]:
    names = list(names)
    values = (columns[name].tolist() for name in names)
    return [_plain(dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
