"""Trace a model that has no dictionary, by its own neurons, and test the neurons that matter most.

    python examples/neurons.py

Writes neurons.html.
"""

import torch

from circuit_tracer import ReplacementModel, attribute, prune_graph
from circuit_tracer.demo import MODEL, PROMPT
from circuit_tracer.graph.words import feature_name
from circuit_tracer.interventions import ablate, apply_each, nodes_of

model = ReplacementModel.from_pretrained(MODEL, "neurons")
graph = attribute(PROMPT, model, max_feature_nodes=500)
assert graph.residual < 1e-5
print(f"{len(graph.selected_features)} neurons, and every row adds up")

influence = prune_graph(graph).influence[graph.nodes.layout.features]
order = influence.argsort(descending=True).tolist()
for node in order[:5]:
    layer, position, index = graph.active_features[graph.selected_features[node]].tolist()
    name, token = feature_name(graph, layer, index), graph.token_texts[position]
    print(f"  {influence[node]:.1%}  {name} at {token!r}, {graph.nodes.activation[node]:+.2f}")

# A neuron is not one concept, and few of them by themselves decide: take out the first n, and n others.
others = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).tolist()
for count in (1, 10, 50):
    experiments = [[ablate(nodes_of(graph, nodes[:count]))] for nodes in (order, others)]
    left = []
    for outcome in apply_each(model, graph, experiments, watch="none"):
        left.append(next(token.probability_after for token in outcome.tokens() if token.text == "Austin"))
    print(f"Austin without the first {count}: {left[0]:.3f}, without {count} others: {left[1]:.3f}")
graph.to_html("neurons.html")
