"""Intervene on features: take Texas out, put California in its place, and see what the model then says.

    python examples/intervene.py

What may react decides what an intervention means: the first is made three ways.
"""

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.interventions import FeatureAt, Supernode, ablate, apply_edits, set_to

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
graph = attribute(PROMPT, model)
other = attribute(PROMPT.replace("Dallas", "Oakland"), model)
labels = load_labels()  # (layer, feature) -> what it fires on


def active(of, label):
    """The features of a graph that are called so, as (layer, position, feature), with their activations."""
    rows = zip(of.active_features.tolist(), of.activation_values.tolist(), strict=True)
    return {FeatureAt(*row): value for row, value in rows if labels.get((row[0], row[2])) == label}


texas = Supernode("Texas", list(active(graph, "Texas (places)")))
california = active(other, "California (places)")

for semantics in ("constrained", "iterative", "direct"):
    outcome = apply_edits(model, graph, ablate(texas), semantics)
    austin = next(token for token in outcome.tokens() if token.text == "Austin")
    print(f"without Texas, {semantics}: Austin {austin.probability_before:.3f} -> {austin.probability_after:.3f}")

# One fact out, another in: the answer to expect is known, so this says more than taking out.
swapped = [ablate(texas), *(set_to(feature, value) for feature, value in california.items())]
outcome = apply_edits(model, graph, swapped)
best = outcome.tokens(1)[0]
print(f"California instead: {best.text} {best.probability_before:.3f} -> {best.probability_after:.3f}")
for feature, before, after in outcome.features.largest(3):
    name = labels.get((feature.layer, feature.feature_idx), "feature")
    print(f"  {name} at {graph.token_texts[feature.position]!r}: {before:.2f} -> {after:.2f}")
assert best.text == "Sacramento"
