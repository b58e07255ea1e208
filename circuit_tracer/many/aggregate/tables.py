"""Tables as parquet, in the folder of a run."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from circuit_tracer.errors import FileFormatError
from circuit_tracer.many.aggregate.statistics import Columns
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import require_pyarrow


def write_table(store: Store, name: str, columns: Columns) -> None:
    """Write columns; the same columns give the same bytes."""
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    table = pyarrow.table({column: pyarrow.array(values) for column, values in columns.items()})
    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    store.write(name, buffer.getvalue())


def read_table(store: Store, name: str) -> Columns:
    """Columns as they were written. Raises InputError if there is no such file, FileFormatError if it is damaged."""
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    try:
        table = parquet.read_table(BytesIO(store.read(name)))
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(f"{store.where(name)} is no parquet table, or it is cut short: {error}") from error
    return {column: np.asarray(table[column].to_pylist(), dtype=_dtype(table[column])) for column in table.column_names}


def _dtype(column: Any) -> Any:
    """numpy's type of a column; texts and columns with gaps are objects."""
    kind = column.type.to_pandas_dtype()
    return object if column.null_count or kind is np.object_ else kind
