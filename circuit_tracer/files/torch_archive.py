"""`.pt` files, which are pickles in a zip archive: tensors and plain values alone, and no larger than their file.

torch's restricted unpickler runs no code, but builds what a pickle describes: views that stand for more numbers than the file
has, tensors without data, lists that hold themselves. Here all of that is refused, and the archive's checksums are compared.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.files.reading import open_file
from circuit_tracer.files.structured import DEEPEST

# The names of classes in a file, as a pattern, and the class that stands in for them.
StandIns = Sequence[tuple[re.Pattern[str], type]]

_MOST_VALUES = 1_000_000  # besides tensors; graphs have some thousand


def load_torch_archive(
    path: str | Path, stand_ins: StandIns, map_location: str | torch.device = "cpu", mapped: bool = False
) -> Any:
    """What ``torch.save`` put into a file: plain values, ``stand_ins``, and dense tensors no larger than their data.

    mapped: tensors stay in the file, and are read as they are used.
    Raises InputError if there is no such file; FileFormatError if it is damaged, names anything else, or holds tensors that
    are sparse, quantised, nested, complex, without data or expanded.
    """
    try:
        with open_file(path) as file:
            data_bytes = _checked_archive(path, file)
            with torch.serialization.safe_globals(_allowed(file, stand_ins)):
                file.seek(0)
                given = str(path) if mapped else file
                content = torch.load(given, map_location=map_location, weights_only=True, mmap=mapped)
        _require_plain(content, data_bytes)
    except CircuitTracerError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {named.group(1)[:100]}" if named else _first_line(error)
        raise FileFormatError(
            f"{path} was not loaded: {what}, which is neither a tensor nor part of what is read here. "
            "A pickle can run any code; only load this file elsewhere if you trust its origin."
        ) from error
    except Exception as error:  # an unpickler fails in as many ways as there are callables in a file
        raise FileFormatError(f"{path} is damaged or no torch file: {_first_line(error)}. Copy it again.") from error
    return content


def _allowed(file: Any, stand_ins: StandIns) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What stands in for the names in a file that torch does not know to be safe."""
    file.seek(0)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [(cls, name) for name in named for pattern, cls in stand_ins if pattern.fullmatch(name)]


def _checked_archive(path: str | Path, file: Any) -> int:
    """Bytes of all records; raises for an archive that is none, packed, or whose checksums do not fit."""
    if not zipfile.is_zipfile(file):
        raise FileFormatError(
            f"{path} is no torch file, or it is damaged or cut short. Native graphs are read by Graph.load."
        )
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(
            record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size for record in records
        ):
            raise FileFormatError(f"{path} is no torch file: its archive is packed, which torch never does.")
        if (damaged := archive.testzip()) is not None:
            raise FileFormatError(
                f"{path} is damaged: the checksum of its part {damaged[:80]!r} differs. Copy it again."
            )
        return sum(record.file_size for record in records)


def _require_plain(content: Any, data_bytes: int) -> None:
    storages: dict[int, int] = {}
    for value in _values(content):
        if isinstance(value, Tensor):
            _require_dense(value)
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    if sum(storages.values()) > data_bytes:
        raise ValueError(f"its tensors claim {sum(storages.values()):,} bytes, the file has {data_bytes:,}")


def _values(content: Any) -> Iterator[Any]:
    """Everything in containers and the attributes of stand-ins, each place by itself; bounded in depth and number."""
    rest, seen = [(content, 1)], 0
    while rest:
        value, depth = rest.pop()
        seen += 1
        if depth > DEEPEST or seen > _MOST_VALUES:
            raise ValueError("it holds too many values" if depth <= DEEPEST else f"it is nested deeper than {DEEPEST}")
        yield value
        match value:
            case dict():
                rest += [(each, depth + 1) for pair in value.items() for each in pair]
            case list() | tuple() | set() | frozenset():
                rest += [(each, depth + 1) for each in value]
            case Tensor() | None | str() | bytes() | int() | float():
                pass
            case _:
                rest += [(each, depth + 1) for each in getattr(value, "__dict__", {}).values()]


def _require_dense(tensor: Tensor) -> None:
    what = {
        "sparse": tensor.layout != torch.strided,
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "without data": tensor.is_meta,
    }
    for kind, found in what.items():
        if found:
            raise ValueError(f"it holds a {kind} tensor; dense tensors of plain numbers are read")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"it holds an expanded tensor: {tuple(tensor.shape)} of {tensor.untyped_storage().nbytes():,} bytes"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
