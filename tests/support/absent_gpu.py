"""Kernels compiled for a GPU that need not be there: launches compile and do not run.

    with compiled_for(90) as found:
        attend_back_(...)          # on CPU tensors, or on "meta" ones, which have no memory
    found[0].registers

What kernels compute is checked by other tests. Triton must not be in its interpreter (TRITON_INTERPRET).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.jit import JITFunction

from circuit_tracer.kernels.tuning import Tuned

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentGPU(CudaDriver):
    """The answers of a driver as far as compiling needs them; a device is known by its compute capability."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.get_current_device = lambda: capability
        self.get_current_stream = lambda device: 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@dataclass(frozen=True)
class Compiled:
    """What one program of a kernel takes."""

    kernel: str
    options: dict[str, Any]  # constants and the configuration
    warps: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread's stack: the kernels have no arrays of their own
    shared: int  # bytes
    tensor_columns: int  # of Blackwell's tensor memory


@contextmanager
def compiled_for(capability: int, step: int = 1, first: int = 0) -> Iterator[list[Compiled]]:
    """Within, launches compile in every configuration; the answer fills with what each takes, once.

    With a ``step``: in every ``step``-th configuration from ``first`` on, at least one of each kernel.
    """
    found: dict[str, Compiled] = {}
    answer: list[Compiled] = []
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None and kernel.hash not in found:
            options = {name: value for name, value in kwargs.items() if isinstance(value, int | str)}
            found[kernel.hash] = Compiled(
                self.__name__,
                options,
                kernel.metadata.num_warps,
                **resources(kernel.asm["cubin"]),
                shared=kernel.metadata.shared,
                tensor_columns=getattr(kernel.metadata, "tmem_size", 0) or 0,
            )
            answer.append(found[kernel.hash])

    def every_configuration(self: Tuned, *args: Any, grid: Any, **constants: Any) -> None:
        for config in self.configs[first % min(step, len(self.configs)) :: step]:
            self.fn[grid](*args, **constants, **config.all_kwargs())

    with (
        patch.object(triton.runtime.driver, "_active", AbsentGPU(capability)),
        patch.object(JITFunction, "run", compile_only),
        patch.object(Tuned, "run", every_configuration),
    ):
        yield answer


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a thread, as the binary says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    said = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}
    return {"registers": said["REG"], "spilled": said["STACK"]}
