"""Compiles every kernel, in every configuration, for a GPU that need not be there; prints what each takes as JSON lines.

    python tests/kernels/compile_for_gpu.py 90 [NAME ...]        # compute capability; some of `cases` (default: all)

Operations are called as usual on CPU tensors, but launches compile and do not run: what the kernels compute is checked by other
tests, here it is that the compiler takes them, that they fit a multiprocessor's shared memory, and that no register spills.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from circuit_tracer.kernels.cases import Calls, Cases
from circuit_tracer.kernels.operations import OPERATIONS

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentGPU(CudaDriver):
    """The answers of a driver as far as compiling needs them."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def compile_instead_of_launching(capability: int) -> dict[str, dict[str, Any]]:
    """From here on launches compile; the answer fills with what each kernel and configuration takes."""
    triton.runtime.driver.set_active(AbsentGPU(capability))
    compiled: dict[str, dict[str, Any]] = {}
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None and kernel.hash not in compiled:
            options = {name: value for name, value in kwargs.items() if isinstance(value, int | str)}
            taken = {"shared": kernel.metadata.shared, **registers(kernel.asm["cubin"])}
            compiled[kernel.hash] = {"kernel": self.__name__, "options": options, **taken}

    def every_configuration(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        for config in self.configs:
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    JITFunction.run = compile_only
    Autotuner.run = every_configuration
    return compiled


def registers(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack (spilled registers)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}


def cases() -> dict[str, tuple[Cases, Calls]]:
    """What to compile, by operation and dtypes."""
    return {
        "-".join([each.name, *(str(dtype)[6:] for dtype in dtypes)]): (each, each.calls(dtypes, *shape))
        for each in OPERATIONS
        for dtypes, shape in each.compiled
    }


def main() -> None:
    compiled = compile_instead_of_launching(int(sys.argv[1]))
    known = cases()
    for name in sys.argv[2:] or known:
        operation, calls = known[name]
        kernels = import_module(f"circuit_tracer.kernels.{operation.name}.triton")
        for function, arguments in calls.items():
            getattr(kernels, function)(*arguments)
        for found in compiled.values():
            print(json.dumps({"case": name, **found}))
        compiled.clear()


if __name__ == "__main__":
    main()
