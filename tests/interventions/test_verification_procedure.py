"""The procedure by which circuit-tracer's own tests verify a graph, at a hundredth of its tolerances.

Everything is frozen and softcapping is off. Every error and token, and up to a hundred random features, are changed; each
feature's pre-activation and each target's demeaned logit must move by the edge. Its tolerances: for errors and tokens 1e-3 on
activations, for features 5e-4 and 1e-5 relative; on logits 1e-5 and 1e-3 relative.
"""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from torch import Tensor

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.interventions.validation.bench import Bench, Sources
from circuit_tracer.interventions.validation.effects import CONDITIONS
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9, 21, 2])
TIGHTER = 100
ERRORS_AND_TOKENS = {"atol": 1e-3 / TIGHTER, "rtol": 1e-3 / TIGHTER}
FEATURES = {"atol": 5e-4 / TIGHTER, "rtol": 1e-5 / TIGHTER}
LOGITS = {"atol": 1e-5 / TIGHTER, "rtol": 1e-3 / TIGHTER}
# a hundred passes each: kinds in turn; softcaps with one and parallel layers with the other always
TURNS = zip(
    ("gemma2", "llama", "gemma3", "qwen3", "gpt2", "gpt_neox", "gpt_oss"), cycle((("clt", False), ("plt", True)))
)
CASES = [(architecture, *kind) for architecture, kind in TURNS]


def traced(architecture: str, kind: str, skip: bool) -> tuple[ReplacementModel, Graph]:
    transcoder = tiny_transcoder(kind, skip=skip, activation="jump_relu", n_features=40)
    model = ReplacementModel.from_model(tiny_model(architecture), transcoder, None, architecture)
    return model, attribute(IDS, model, max_n_logits=10, desired_logit_prob=0.95)


@pytest.mark.few
@pytest.mark.parametrize(("architecture", "kind", "skip"), CASES)
def test_errors_and_tokens(architecture: str, kind: str, skip: bool) -> None:
    model, graph = traced(architecture, kind, skip)
    layout = graph.nodes.layout
    sources = torch.arange(layout.error_start, layout.target_start)
    bench = Bench(model, graph, torch.arange(layout.n_features), measurable_targets(graph), 16)
    found = bench.run([Sources.of_nodes(graph, node[None]) for node in sources], CONDITIONS[0])
    columns = graph.adjacency_matrix[:, sources].T
    torch.testing.assert_close(-found.features, columns[:, layout.features], **ERRORS_AND_TOKENS)
    torch.testing.assert_close(-found.targets, columns[:, layout.targets], **LOGITS)


@pytest.mark.slow("takes 2.8 s")
@pytest.mark.parametrize(("architecture", "kind", "skip"), CASES)
def test_features(architecture: str, kind: str, skip: bool) -> None:
    model, graph = traced(architecture, kind, skip)
    layout, matrix = graph.nodes.layout, graph.adjacency_matrix
    rows = graph.active_features[graph.selected_features]
    layer, position, index = rows.T
    clean_logits, clean = run(model, [])
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:100]
    for node in chosen.tolist():
        place, value = rows[node].tolist(), float(graph.activation_values[graph.selected_features[node]])
        logits, activations = run(model, [(*place, 2 * value)])
        moved = (activations - clean)[layer, position, index]
        torch.testing.assert_close(moved, matrix[layout.features, node], **FEATURES)
        change = (logits - clean_logits)[0, -1]
        found = (change - change.mean())[graph.logit_token_ids]
        torch.testing.assert_close(found, matrix[layout.targets, node], **LOGITS)


def run(model: ReplacementModel, interventions: list[tuple[int, int, int, float]]) -> tuple[Tensor, Tensor]:
    """Logits and pre-activations, every layer constrained."""
    with model.zero_softcap():
        logits, activations = model.feature_intervention(
            IDS, interventions, constrained_layers=range(model.cfg.n_layers), apply_activation_function=False
        )
    assert activations is not None
    return logits, activations
