"""`torchrun -m circuit_tracer attribute`: two processes share the rows, one writes, and the graph is that of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuit_tracer import Graph
from tests.support.command import Run
from tests.support.process_cases import commands_together

PROMPT = "the capital of the state containing Dallas is"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow("torchrun: three processes import the package anew")
def test_two_processes_write_the_graph_of_one(run: Run, tmp_path: Path) -> None:
    shown = ["--demo", "-p", PROMPT, "--max-feature-nodes", "40", "-o"]
    alone = run("attribute", *shown, tmp_path / "one.safetensors")
    command = [*TORCHRUN, "-m", "circuit_tracer", "attribute", *shown, str(tmp_path / "two.safetensors")]
    shared = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert alone.code == 0, alone.err
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("two.safetensors") == 1  # one process speaks
    one, two = (Graph.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (one.provenance["processes"], two.provenance["processes"]) == (1, 2)
    assert torch.equal(one.selected_features, two.selected_features)
    torch.testing.assert_close(one.adjacency_matrix, two.adjacency_matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.slow("the embedded model in four processes: 3 s")
def test_what_is_traced_is_not_traced_again(tmp_path: Path) -> None:
    shown = ["attribute", "--demo", "-p", PROMPT, "--max-feature-nodes", 5, "-o", tmp_path / "two.safetensors"]
    first = commands_together(2, *shown, folder=tmp_path / "first")
    assert [each.code for each in first] == [0, 0], first
    again = commands_together(2, *shown, "--resume", folder=tmp_path / "again")
    assert [each.code for each in again] == [0, 0], again
    assert "1 of 1 prompts are traced already" in again[0].err


@pytest.mark.slow("takes 2.1 s")
def test_bad_input_ends_all_processes_with_words(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    wrong = ["attribute", "--demo", "-p", PROMPT, "-o", out, "--target", "notatoken of this model"]
    ended = commands_together(2, *wrong, folder=tmp_path / "ranks")
    assert all(each.code == 2 for each in ended), ended
    assert any("notatoken" in each.err for each in ended)
    assert not out.exists()
