"""Which path the public functions take, on machines that have no Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from circuit_tracer.errors import CompatibilityError
from circuit_tracer.kernels import device
from circuit_tracer.kernels.operations import OPERATIONS

USE_EVERYTHING = """
import sys
sys.modules["triton"] = None  # importing it is an error
from importlib import import_module
from circuit_tracer.kernels.operations import OPERATIONS
for each in OPERATIONS:
    package = import_module("circuit_tracer.kernels." + each.name)
    for dtypes in each.torch:
        for function, arguments in each.calls(dtypes, *each.shapes[-1]).items():
            getattr(package, function)(*arguments)
    print(each.name)
"""


@pytest.mark.slow("takes 2.1 s")
def test_cpu_paths_do_without_triton() -> None:
    found = subprocess.run([sys.executable, "-c", USE_EVERYTHING], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [each.name for each in OPERATIONS]


def test_a_gpu_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(device, "_TRITON", False)
    with pytest.raises(
        CompatibilityError, match=r"tensors on cuda:0 are computed by Triton kernels.*pip install triton"
    ):
        device.on_gpu(OnGPU())
    assert not device.on_gpu(torch.ones(1))


class Lying:
    """A tensor somewhere, that notes how it is copied."""

    def __init__(self, place: str, nbytes: int) -> None:
        self.device, self.nbytes, self.done = torch.device(place), nbytes, list[object]()

    def pin_memory(self) -> Lying:
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool) -> list[object]:
        return [*self.done, non_blocking]


@pytest.mark.parametrize(
    ("source", "target", "nbytes", "expected"),
    [
        ("cpu", "cuda", 8, [True]),
        ("cpu", "cuda", 2**20, ["pinned", True]),
        ("cpu", "mps", 8, [False]),
        ("cuda", "cpu", 8, [False]),
        ("cuda", "cuda", 2**20, [False]),
    ],
)
def test_only_what_comes_from_the_host_is_not_waited_for(
    source: str, target: str, nbytes: int, expected: list[object]
) -> None:
    assert device.sent(Lying(source, nbytes), torch.device(target)) == expected
