"""Tables as parquet."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from circuit_tracer.errors import FileFormatError
from circuit_tracer.many.aggregate.statistics import Columns
from circuit_tracer.many.runs.table import require_pyarrow


def table_bytes(columns: Columns) -> bytes:
    """Columns as a parquet file; the same columns give the same bytes."""
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    table = pyarrow.table({column: pyarrow.array(values) for column, values in columns.items()})
    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def columns_of(data: bytes, source: str) -> Columns:
    """The other way round. Raises FileFormatError, naming ``source``, for what is no parquet file."""
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    try:
        table = parquet.read_table(BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(f"{source} is no parquet table, or it is cut short: {error}") from error
    return {column: np.asarray(table[column].to_pylist(), dtype=_dtype(table[column])) for column in table.column_names}


def _dtype(column: Any) -> Any:
    """numpy's type of a column; texts and columns with gaps are objects."""
    kind = column.type.to_pandas_dtype()
    return object if column.null_count or kind is np.object_ else kind
