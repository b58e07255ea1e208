"""Compiles every kernel, in every configuration, for a GPU that need not be there; prints what each takes as JSON lines.

    python tests/kernels/compile_for_gpu.py 90 [NAME ...]        # compute capability; some of CASES (default: all)

Operations are called as usual on CPU tensors, but launches compile and do not run: what the kernels compute is checked by other
tests, here it is that the compiler takes them, that they fit a multiprocessor's shared memory, and that no register spills.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

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


def decode(dtype: torch.dtype, weight: torch.dtype, width: int) -> None:
    from circuit_tracer.kernels.decode import triton as kernels
    from circuit_tracer.kernels.sparse_activations import SparseActivations

    row = torch.arange(512) // 2
    entries = SparseActivations.from_entries(row, torch.arange(512) % 7 // 5, torch.ones(512), 256, 2)
    out_BC, weight_FC = torch.zeros(256, width, dtype=dtype), torch.zeros(2, width, dtype=weight)
    if dtype is not torch.bfloat16:
        kernels.decode_(out_BC, entries, weight_FC)
    kernels.gradients(out_BC, entries, weight_FC)
    kernels.value_gradients(out_BC, entries, weight_FC)
    kernels.weight_gradients(out_BC, entries, 0, 2)


def contract(dtype: torch.dtype, table: torch.dtype, width: int) -> None:
    from circuit_tracer.kernels.contract import triton as kernels
    from circuit_tracer.kernels.contract.addressed import AddressedRows

    g_TPD, out_TN, zeros = (
        torch.zeros(128, 2, width, dtype=dtype),
        torch.zeros(128, 64),
        torch.zeros(64, dtype=torch.int64),
    )
    tables = [torch.zeros(2, width, dtype=table) for _ in range(2)]
    sources = AddressedRows(tables, zeros, zeros, zeros.float(), torch.arange(64), [0, 20, 64])
    kernels.contract_rows_(out_TN, g_TPD, sources)
    kernels.contract_(out_TN, g_TPD, torch.zeros(64, width, dtype=table), [0, 20, 64], [0, 20])


def encode(dtype: torch.dtype, weight: torch.dtype, width: int) -> None:
    from circuit_tracer.kernels.encode import triton as kernels

    x_BD, weight_FD = torch.zeros(256, width, dtype=dtype), torch.zeros(512, width, dtype=weight)
    bias_F = torch.zeros(512, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    kernels.encode(x_BD, weight_FD, bias_F, bias_F)
    kernels.encode_top_k(x_BD, weight_FD, bias_F, 16)


def attend_back(dtype: torch.dtype, d_head: int) -> None:
    from circuit_tracer.kernels.attend_back import triton as kernels
    from circuit_tracer.kernels.attend_back.scores import Scores

    g_TPD, heads = torch.zeros(16, 32, 48, dtype=dtype), torch.zeros(4, 32, d_head, dtype=dtype)
    output_DO, value_VD = torch.zeros(48, 4 * d_head, dtype=dtype), torch.zeros(2 * d_head, 48, dtype=dtype)
    lse_HP, first_P = torch.zeros(4, 32, dtype=dtype), torch.zeros(32, dtype=torch.int64)
    scores = Scores(heads, heads[:2], lse_HP, first_P, 0.1, 50.0, torch.ones(32, dtype=dtype))
    kernels.attend_back_recomputed_(g_TPD, scores, output_DO, value_VD)


CASES = {
    "decode-float32-bfloat16": lambda: decode(torch.float32, torch.bfloat16, 2304),
    "encode-float32-bfloat16": lambda: encode(torch.float32, torch.bfloat16, 2304),
    "encode-bfloat16-bfloat16": lambda: encode(torch.bfloat16, torch.bfloat16, 768),
    "encode-float32-float32": lambda: encode(torch.float32, torch.float32, 576),
    "encode-float64-float64": lambda: encode(torch.float64, torch.float64, 63),
    "attend_back-float32": lambda: attend_back(torch.float32, 64),
    "attend_back-bfloat16": lambda: attend_back(torch.bfloat16, 256),
    "attend_back-float64": lambda: attend_back(torch.float64, 16),
    "contract-float32-bfloat16": lambda: contract(torch.float32, torch.bfloat16, 2304),
    "contract-bfloat16-bfloat16": lambda: contract(torch.bfloat16, torch.bfloat16, 2304),
    "contract-float32-float32": lambda: contract(torch.float32, torch.float32, 576),
    "contract-float64-float64": lambda: contract(torch.float64, torch.float64, 63),
    "decode-float32-float32": lambda: decode(torch.float32, torch.float32, 63),
    "decode-bfloat16-bfloat16": lambda: decode(torch.bfloat16, torch.bfloat16, 9216),
    "decode-float64-float64": lambda: decode(torch.float64, torch.float64, 576),
}


def main() -> None:
    compiled = compile_instead_of_launching(int(sys.argv[1]))
    for name in sys.argv[2:] or CASES:
        CASES[name]()
        for found in compiled.values():
            print(json.dumps({"case": name, **found}))
        compiled.clear()


if __name__ == "__main__":
    main()
