"""circuit-tracer's `circuit_tracer.utils.disk_offload`: modules put aside while they are not needed.

`attribute` needs none of it: it reads decoder rows from the transcoder's files when told to `offload`.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import nn

from circuit_tracer.errors import InputError
from circuit_tracer.files.tensors import open_tensor_file

__all__ = [
    "cleanup_all_offload_files",
    "cleanup_offload_files",
    "cpu_offload_module",
    "disk_offload_module",
    "offload_modules",
]

Reload = Callable[[], None]
_files: set[Path] = set()


def offload_modules(modules: nn.Module | Iterable[nn.Module], offload_type: Literal["cpu", "disk"]) -> list[Reload]:
    """Move a module, or each of several, to main memory or to a file; returns what brings each back."""
    if offload_type not in ("cpu", "disk"):
        raise InputError(f"offload_type is {offload_type!r}; use 'cpu' or 'disk'")
    put_aside = cpu_offload_module if offload_type == "cpu" else disk_offload_module
    if isinstance(modules, nn.ModuleDict):
        modules = modules.values()
    elif isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList | nn.Sequential):
        modules = [modules]
    return [put_aside(module) for module in modules]


def cpu_offload_module(module: nn.Module) -> Reload:
    """Move a module to main memory; the result moves it back."""
    device = next(module.parameters()).device
    module.to("cpu")

    def reload() -> None:
        module.to(device)

    return reload


def disk_offload_module(module: nn.Module) -> Reload:
    """Write a module's weights to a temporary file and let go of them; the result reads them back and removes the file."""
    device = next(module.parameters()).device
    with tempfile.NamedTemporaryFile(prefix="circuit-tracing-offload-", suffix=".safetensors", delete=False) as file:
        path = Path(file.name)
    _files.add(path)
    save_file({name: weight.contiguous() for name, weight in module.state_dict().items()}, path)
    module.to("meta")

    def reload() -> None:
        file = open_tensor_file(path)
        weights = {name: file.tensor(name).to(device, copy=True) for name in file.entries}
        module.load_state_dict(weights, assign=True)
        cleanup_offload_files([path])

    return reload


def cleanup_offload_files(paths: Iterable[Path] | None = None) -> None:
    """Remove the files of this process that were not read back, or some of them."""
    for path in list(_files if paths is None else paths):
        path.unlink(missing_ok=True)
        _files.discard(path)


def cleanup_all_offload_files() -> int:
    """Remove all files of this process; how many there were. Those of other processes are in use, and are left alone."""
    count = len(_files)
    cleanup_offload_files()
    return count


atexit.register(cleanup_offload_files)
