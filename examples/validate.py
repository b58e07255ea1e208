"""Validate a graph: run the interventions that it predicts, and say what not to trust.

    python examples/validate.py

Writes dallas.safetensors: the graph, with its groups and the report, which the page shows under About.
"""

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.circuits import group_nodes, keep_grouping
from circuit_tracer.circuits.naming import name_groups, titles
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.interventions import validate

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
graph = attribute(PROMPT, model)
grouping = name_groups(graph, group_nodes(graph, model, labels=load_labels()), labels=load_labels(), model=model)
keep_grouping(graph, grouping)
named = zip(titles(graph, grouping), grouping, strict=True)
groups = {title: group.members for title, group in named if group.role not in ("token", "logit")}

report = validate(graph, model, groups=groups)

for condition, effects in report.graph.effects.items():
    edges = effects.edges
    print(f"{condition:<12} edges against interventions: Spearman {edges.spearman:.2f}, slope {edges.slope:.2f}")
circuit = report.graph.circuit["live"]
print(
    f"Austin {circuit.clean:.3f}, without the circuit {circuit.without:.3f}, without others {circuit.without_others:.3f}"
)
for effect in report.groups.effects:
    print(f"without {effect.name}: {effect.left['live']:.3f}, as many others: {effect.random.left:.3f}")
print("\n".join(report.verdict + report.distrust))
graph.save("dallas.safetensors")
assert report.graph.effects["constrained"].edges.worst < 1e-5  # the arithmetic
