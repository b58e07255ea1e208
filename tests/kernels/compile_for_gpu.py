"""Compiles every kernel, in every configuration, for a GPU that need not be there; prints what each takes as JSON lines.

    python tests/kernels/compile_for_gpu.py 90 [NAME ...]        # compute capability; some of `cases` (default: all)
    python tests/kernels/compile_for_gpu.py 90/3                 # every third configuration, in the next case the next third

Here it is that the compiler takes them, that they fit a multiprocessor's shared memory, and that no register spills
(`tests/support/absent_gpu.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from circuit_tracer.kernels.cases import Calls, Cases
from circuit_tracer.kernels.operations import OPERATIONS
from tests.support.absent_gpu import compiled_for


def cases() -> dict[str, tuple[Cases, Calls]]:
    """What to compile, by operation and dtypes."""
    return {
        "-".join([each.name, *(str(dtype)[6:] for dtype in dtypes)]): (each, each.calls(dtypes, *shape))
        for each in OPERATIONS
        for dtypes, shape in each.compiled
    }


def main() -> None:
    known = cases()
    capability, _, step = sys.argv[1].partition("/")
    for place, name in enumerate(sys.argv[2:] or known):
        operation, calls = known[name]
        kernels = import_module(f"circuit_tracer.kernels.{operation.name}.triton")
        with compiled_for(int(capability), int(step or 1), place) as found:
            for function, arguments in calls.items():
                getattr(kernels, function)(*arguments)
        for compiled in found:
            print(json.dumps({"case": name, **asdict(compiled)}))


if __name__ == "__main__":
    main()
