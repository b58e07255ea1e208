"""The probe of the machine: quick, and what it says of memory and disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from circuit_tracer.training.run import machine as machines
from circuit_tracer.training.run.machine import measure


@pytest.mark.slow("takes 1.6 s")
def test_the_machine_is_measured_in_under_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old").write_bytes(bytes(10**6))
    monkeypatch.setattr(machines.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5 * 10**6}))
    threads, start = torch.get_num_threads(), time.process_time()
    found = measure(torch.device("cpu"), ("float32", "float32"), tmp_path, threads=1, processes=4)
    assert time.process_time() - start < 1.5
    assert torch.get_num_threads() == threads
    assert found.flops["float32"] > 1e8
    assert 1e8 < found.bytes_per_second < 1e13
    assert found.disk_free == 6 * 10**6  # the old checkpoint will be replaced
    assert found.device_free == found.host_free
    beside = measure(torch.device("cpu"), ("float32",), tmp_path / "not" / "there", threads=1)
    assert beside.host_free > 3 * found.host_free
