"""`torchrun -m circuit_tracer attribute`: two processes share the rows, one writes, and the graph is that of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuit_tracer import Graph
from tests.support.command import Run

PROMPT = "the capital of the state containing Dallas is"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def trace(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "-m", "circuit_tracer", "attribute", "--demo", "-p", PROMPT, "-o", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.slow("torchrun twice: six processes import the package anew")
def test_two_processes_write_the_graph_of_one(run: Run, tmp_path: Path) -> None:
    shown = ["--demo", "-p", PROMPT, "--max-feature-nodes", 40]
    alone = run("attribute", *shown, "-o", tmp_path / "one.safetensors")
    shared = trace(tmp_path / "two.safetensors", "--max-feature-nodes", "40")
    assert alone.code == 0, alone.err
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("two.safetensors") == 1  # one process speaks
    one, two = (Graph.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (one.provenance["processes"], two.provenance["processes"]) == (1, 2)
    assert torch.equal(one.selected_features, two.selected_features)
    torch.testing.assert_close(one.adjacency_matrix, two.adjacency_matrix, rtol=1e-5, atol=1e-6)
    again = trace(tmp_path / "two.safetensors", "--resume")
    assert again.returncode == 0, again.stderr
    assert "1 of 1 prompts are traced already" in again.stderr


@pytest.mark.slow("torchrun: three processes import the package anew")
def test_bad_input_ends_all_processes_with_words(tmp_path: Path) -> None:
    ended = trace(tmp_path / "x.safetensors", "--target", "notatoken of this model")
    assert ended.returncode != 0
    assert "notatoken" in ended.stderr
    assert not (tmp_path / "x.safetensors").exists()
