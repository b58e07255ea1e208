"""Which path the public functions take, on machines that have no Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from circuit_tracer.errors import CompatibilityError
from circuit_tracer.kernels import device

USE_EVERYTHING = """
import sys
sys.modules["triton"] = None  # importing it is an error
import torch
from circuit_tracer.kernels.attend_back import attend_back_
from circuit_tracer.kernels.contract import contract_
from circuit_tracer.kernels.decode import decode_, gradients
from circuit_tracer.kernels.encode import encode, encode_top_k
one = torch.ones(2, 2)
entries = encode(one, one, one[0], one[0])
encode_top_k(one, one, one[0], 1)
decode_(one.clone(), entries, one)
gradients(one, entries, one)
contract_(one.clone(), one[:, None], one, [0, 2], [0])
attend_back_(one[None].clone(), one[None].tril(), one, one)
print(len(entries.feature))
"""


def test_cpu_paths_do_without_triton() -> None:
    found = subprocess.run([sys.executable, "-c", USE_EVERYTHING], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "4"


def test_a_gpu_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(device, "_TRITON", False)
    with pytest.raises(
        CompatibilityError, match=r"tensors on cuda:0 are computed by Triton kernels.*pip install triton"
    ):
        device.on_gpu(OnGPU())
    assert not device.on_gpu(torch.ones(1))
