"""The table of a run: what became of each row. `results.parquet` is made of it.

| column | what it holds |
|---|---|
| `id`, `label` | of the row |
| `status` | `done`, `failed`, or `waiting`: not traced yet |
| `error_type`, `error` | why it failed |
| `prompt` | the text that was traced, special tokens included; of rows without a graph, the text that was given |
| `n_tokens` | P |
| `top_token`, `top_probability`, `entropy` | the model's prediction where targets are read; entropy in nats |
| `targets`, `target_weights` | what was explained; of tokens, weights are probabilities |
| `replacement`, `completeness`, `strict_completeness` | scores of the whole graph (`graph/scores.py`) |
| `residual` | the worst relative residual of the sum rule |
| `n_active`, `n_features`, `n_nodes`, `n_edges` | active features, those with a row, nodes, edges |
| `warnings` | what the trace warned of |
| `seconds` | how long the trace took |

A value that a row does not have is None. The parquet file has the rows' other columns behind these; one that is named like one
of these is called `row.NAME` there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.extras import missing_extra
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.store import Store

RESULTS = "results.parquet"
COLUMNS = {  # and their types in parquet
    "id": "string", "label": "string", "status": "string", "error_type": "string", "error": "string", "prompt": "string",
    "n_tokens": "int64", "top_token": "string", "top_probability": "double", "entropy": "double", "targets": "strings",
    "target_weights": "doubles", "replacement": "double", "completeness": "double", "strict_completeness": "double",
    "residual": "double", "n_active": "int64", "n_features": "int64", "n_nodes": "int64", "n_edges": "int64",
    "warnings": "strings", "seconds": "double",
}  # fmt: skip


def traced_row(id: str, graph: Graph) -> dict[str, Any]:
    """What a unit's record says of a row that is done; JSON values."""
    scores, layout, targets = graph_scores(graph), graph.nodes.layout, graph.targets
    prediction, residual = graph.provenance["prediction"], graph.residual
    return {
        "id": id,
        "status": "done",
        "prompt": graph.input_string,
        "n_tokens": graph.n_pos,
        "top_token": prediction["tokens"][0],
        "top_probability": prediction["probabilities"][0],
        "entropy": prediction["entropy"],
        "targets": list(targets.label),
        "target_weights": targets.weight.tolist(),
        "replacement": _number(scores.replacement),
        "completeness": _number(scores.completeness),
        "strict_completeness": _number(scores.strict_completeness),
        "residual": None if residual is None else _number(residual),
        "n_active": len(graph.active_features),
        "n_features": layout.n_features,
        "n_nodes": layout.n_nodes,
        "n_edges": len(graph.edges),
        "warnings": list(graph.provenance["warnings"]),
    }


def failed_row(id: str, error: Exception) -> dict[str, Any]:
    """What a unit's record says of a row that cannot be traced."""
    ours = isinstance(error, CircuitTracerError)
    said = str(error) if ours else f"{error} (a failure of ours)"
    return {"id": id, "status": "failed", "error_type": type(error).__name__, "error": said}


def make_table(
    rows: Iterable[tuple[str | None, Row]],
    records: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """A dict with all columns a row, in their order. records, seconds: by id, of rows whose unit is finished."""
    table = []
    for _, row in rows:
        found = records.get(row.id, {"status": "waiting"})
        if row.problem is not None:
            found = failed_row(row.id, FileFormatError(row.problem))
        given = row.prompt if isinstance(row.prompt, str) else None
        known = {"prompt": given, **found, "id": row.id, "label": row.label, "seconds": seconds.get(row.id)}
        table.append({column: known.get(column) for column in COLUMNS})
    return table


def write_table(store: Store, table: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """Write `results.parquet`. Raises InputError without pyarrow, ResourceError if it cannot be written."""
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    kinds = {"strings": pyarrow.list_(pyarrow.string()), "doubles": pyarrow.list_(pyarrow.float64())}
    arrays = {
        name: pyarrow.array([each[name] for each in table], kinds.get(kind) or pyarrow.type_for_alias(kind))
        for name, kind in COLUMNS.items()
    }
    for name, values in extra_columns(rows).items():
        arrays[f"row.{name}" if name in COLUMNS else name] = pyarrow.array(values)
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(arrays), buffer)
    store.write(RESULTS, buffer.getvalue().to_pybytes())


def extra_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Values of the rows' other columns, None where a row has none. What parquet has no one type for is text, in JSON."""
    names = dict.fromkeys(name for row in rows for name in row.extra)
    columns = {name: [row.extra.get(name) for row in rows] for name in names}
    return {name: values if _of_one_type(values) else list(map(_as_text, values)) for name, values in columns.items()}


def require_pyarrow() -> Any:
    """pyarrow, or an InputError that says how to install it."""
    try:
        import pyarrow
    except ImportError as error:
        raise missing_extra("tables of runs", error) from error
    return pyarrow


def _of_one_type(values: list[Any]) -> bool:
    kinds = {type(value) for value in values if value is not None}
    return len(kinds) == 1 and kinds <= {str, int, float, bool}


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
