"""How many programs a trace would have compiled, by kernel, over many numbers of rows and positions; prints JSON.

Launches neither run nor compile: counted is what Triton tells apart, types and the divisibility of numbers and addresses.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from circuit_tracer.kernels.attend_back import projections
from circuit_tracer.kernels.attend_back import triton as attend_back
from circuit_tracer.kernels.contract import triton as contract
from circuit_tracer.kernels.decode import triton as decode
from circuit_tracer.kernels.encode import triton as encode
from circuit_tracer.kernels.tuning import Tuned
from tests.support.absent_gpu import AbsentGPU

ROWS = (512, 300, 256, 65, 37, 16, 2)
POSITIONS = (1000, 333, 64, 25, 16, 7, 2)
WIDTH, HEADS, KV_HEADS, D_HEAD, FEATURES, ACTIVE = 576, 9, 3, 64, 2048, 50


def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def trace(T: int, P: int) -> None:
    """The launches of a block of rows at a layer, and of a prompt."""
    i64, i32 = torch.int64, torch.int32
    g, z, mixed = new(T, P, WIDTH), new(T, P, HEADS * D_HEAD), new(T, P, KV_HEADS * D_HEAD)
    output, value = (
        new(3, WIDTH, HEADS * D_HEAD, dtype=torch.bfloat16),
        new(3, KV_HEADS * D_HEAD, WIDTH, dtype=torch.bfloat16),
    )
    projections._project_op._init_fn(z.flatten(0, 1), g.flatten(0, 1), output, False)
    attend_back._mix_op._init_fn(mixed, new(HEADS, P, P), z, 0, P, 0, P, D_HEAD)
    projections._project_op._init_fn(g.flatten(0, 1), mixed.flatten(0, 1), value, True)
    n = P * ACTIVE + P // 3
    edges = new(T, n + 31 * P)[:, :n]
    contract._contract_op._init_fn(
        edges, g, [new(n, WIDTH)], new(P + 1, dtype=i64), new(P, dtype=i64), None, None, None, ACTIVE + 1
    )
    counts, room = new(P, FEATURES // encode.BLOCK_F, dtype=i32), n
    listed = new(room, dtype=i32), counts, counts, counts[0, :1]
    weight = new(FEATURES, WIDTH), new(FEATURES), new(FEATURES)
    encode._list_op._init_fn(new(room), *listed, new(P, WIDTH), *weight, None)
    encode._place_op._init_fn(
        new(room, dtype=i64), new(room), new(room), listed[0], new(counts.numel() + 1, dtype=i64), counts, listed[3]
    )
    rows = new(FEATURES, 30 * WIDTH)
    decode._decode_op._init_fn(new(P, 30 * WIDTH), new(P + 1, dtype=i64), new(n, dtype=i64), new(n), rows)


def main() -> None:
    keys: dict[str, set[str]] = defaultdict(set)

    def counted(self: JITFunction, key: str, *arguments: Any) -> None:
        keys[self.__name__].add(key)

    def first(self: Tuned, *args: Any, grid: Any, **constants: Any) -> None:
        self.fn[grid](*args, **constants, **self.configs[0].all_kwargs())

    with (
        patch.object(triton.runtime.driver, "_active", AbsentGPU(90)),
        patch.object(JITFunction, "_do_compile", counted),
        patch.object(Tuned, "run", first),
    ):
        for T in ROWS:
            for P in POSITIONS:
                trace(T, P)
    print(json.dumps({name: len(found) for name, found in keys.items()}))


if __name__ == "__main__":
    main()
