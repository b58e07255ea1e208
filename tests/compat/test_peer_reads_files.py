"""circuit-tracer itself reads our `.pt` files, and writes what we read. In its own environment, which must be named:

CIRCUIT_TRACER_TEST_PEER=PEER      the folder that benchmarks/peer/setup_peer.sh makes
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute, compute_graph_scores, prune_graph

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "interventions" / "peer"
PEER = os.environ.get("CIRCUIT_TRACER_TEST_PEER")


@pytest.mark.skipif(not PEER, reason="CIRCUIT_TRACER_TEST_PEER names no environment with circuit-tracer 0.5.0 in it")
@pytest.mark.parametrize("transcoder", ["clt", "plt-skip"])
@pytest.mark.slow("starts circuit-tracer, which takes about ten seconds")
def test_circuit_tracer_reads_our_graph(transcoder: str, tmp_path: Path) -> None:
    model = ReplacementModel.from_pretrained(MODEL / "model", MODEL / transcoder, device="cpu")
    graph = attribute("the capital of Texas is", model, max_n_logits=4)
    graph.to_pt(tmp_path / "ours.pt")
    python = Path(str(PEER)).resolve() / "bin" / "python"
    script = ROOT / "benchmarks" / "peer" / "read_graph.py"
    done = subprocess.run(
        [python, script, "ours.pt", "theirs.pt"], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["version"] == "0.5.0"
    assert [tuple(target) for target in seen["targets"]] == graph.logit_targets
    assert seen["tokenizer_name"] == str(MODEL / "model")
    assert seen["cfg"] == {name: str(value) for name, value in graph.cfg.to_dict().items()}
    assert (seen["n_pos"], seen["scan"], seen["vocab_size"]) == (graph.n_pos, graph.scan, graph.vocab_size)
    assert seen["scores"] == pytest.approx(compute_graph_scores(graph), rel=1e-4)
    pruned = prune_graph(graph)
    assert seen["kept"] == pytest.approx([int(pruned.node_mask.sum()), int(pruned.kept_edges.sum())], abs=2)
    back = Graph.from_pt(tmp_path / "theirs.pt")
    assert torch.equal(back.adjacency_matrix, graph.adjacency_matrix)
    assert back.logit_targets == graph.logit_targets
