"""The table of operations. Each says in `<operation>/cases.py` on which arguments its ways must agree: the functions of its
package (torch on a CPU), those of `triton.py`, and the specification in `naive.py`.

What every row must pass is in tests/kernels: test_every_operation.py, test_kernel_paths.py, test_triton_compiles.py.
"""

from __future__ import annotations

from circuit_tracer.kernels.adam.cases import CASES as adam
from circuit_tracer.kernels.attend_back.cases import CASES as attend_back
from circuit_tracer.kernels.cases import Cases
from circuit_tracer.kernels.contract.cases import CASES as contract
from circuit_tracer.kernels.decode.cases import CASES as decode
from circuit_tracer.kernels.digits.cases import CASES as digits
from circuit_tracer.kernels.encode.cases import CASES as encode

OPERATIONS: tuple[Cases, ...] = (
    adam,
    attend_back,
    contract,
    decode,
    digits,
    encode,
)
