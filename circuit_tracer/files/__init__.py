"""Files: reading under limits, so that no file can hang, exhaust or crash us; writing so that nothing is lost.

What is wrong with a file is a FileFormatError, and a file that cannot be opened an InputError; never another exception.
Tensors are read by `circuit_tracer.files.tensors`, which loads torch.
"""

from __future__ import annotations

from circuit_tracer.files.locks import claimed, locked
from circuit_tracer.files.reading import (
    LARGEST_JSON,
    LARGEST_YAML,
    near_names,
    open_file,
    read_bytes,
    read_text,
    unpack,
)
from circuit_tracer.files.structured import (
    DEEPEST,
    PlainLoader,
    parse_json,
    parse_toml,
    parse_yaml,
    read_json,
    read_yaml,
    validated,
)
from circuit_tracer.files.writing import (
    atomic_write,
    require_writable_file,
    require_writable_folder,
    sync,
    temporary_path,
)

__all__ = [
    "DEEPEST",
    "LARGEST_JSON",
    "LARGEST_YAML",
    "PlainLoader",
    "atomic_write",
    "claimed",
    "locked",
    "near_names",
    "open_file",
    "parse_json",
    "parse_toml",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "require_writable_file",
    "require_writable_folder",
    "sync",
    "temporary_path",
    "unpack",
    "validated",
]
