"""How many programs of a kernel a multiprocessor holds, from what one takes; and the least time, from what all of them do.

A multiprocessor has 65,536 registers, room for so many warps and programs, shared memory, and on Blackwell 512 columns of
tensor memory. Registers are given out to warps, 256 at a time; each program's shared memory costs 1 KB more than it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS, REGISTERS_AT_ONCE = 65_536, 256
WARPS, PROGRAMS, WARP = 64, 32, 32
RESERVED, SHARED_AT_ONCE = 1024, 128  # bytes of shared memory
TENSOR_COLUMNS = 512


@dataclass(frozen=True)
class GPU:
    """What differs between generations."""

    name: str
    shared: int  # bytes of a multiprocessor
    shared_of_a_program: int


GPUS = {
    80: GPU("A100", 164 * 1024, 163 * 1024),
    90: GPU("H100, H200", 228 * 1024, 227 * 1024),
    100: GPU("B200", 228 * 1024, 227 * 1024),
}

# An H200's data sheet. A product of TF32 numbers runs at half the rate of bfloat16's.
BYTES_PER_SECOND = 4.8e12
FLOPS = {"bfloat16": 990e12, "tf32": 495e12, "float32": 67e12}
# How a product of each kind (kernels/launch.py) is made: how many of which.
MADE_OF = {
    "native": (1, "bfloat16"),
    "split": (3, "bfloat16"),
    "digits": (6, "bfloat16"),  # attend_back/projections.py
    "tf32x3": (3, "tf32"),
    "plain": (1, "float32"),
}


@dataclass(frozen=True)
class Occupancy:
    """Programs of a kernel on a multiprocessor, warps in all, and of what there is not enough for one more."""

    programs: int
    warps: int
    limit: str

    @property
    def share(self) -> float:
        """Of the warps that there could be."""
        return self.warps / WARPS


def occupancy(capability: int, warps: int, registers: int, shared: int, tensor_columns: int = 0) -> Occupancy:
    """Of programs that take so many warps, registers a thread, bytes and columns. None fit where shared memory is short."""
    gpu = GPUS[capability]
    of_a_warp = _whole(registers * WARP, REGISTERS_AT_ONCE)
    held = {
        "programs": PROGRAMS,
        "warps": WARPS // warps,
        # each of the four schedulers has a quarter of the registers, and a quarter of a program's warps
        "registers": 4 * (REGISTERS // 4 // of_a_warp) // warps,
        "shared memory": gpu.shared // _whole(shared + RESERVED, SHARED_AT_ONCE),
    }
    if tensor_columns:
        held["tensor memory"] = TENSOR_COLUMNS // tensor_columns
    if shared > gpu.shared_of_a_program:
        held["shared memory"] = 0
    limit = min(held, key=lambda name: held[name])
    return Occupancy(held[limit], held[limit] * warps, limit)


def least_time(flops: float, kind: str, moved: float) -> tuple[float, str]:
    """Seconds of a launch on an H200, and what takes them: the longer of its products and its bytes."""
    times, rate = MADE_OF[kind]
    products, memory = times * flops / FLOPS[rate], moved / BYTES_PER_SECOND
    return (products, f"{rate} products") if products > memory else (memory, "memory")


def _whole(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit
