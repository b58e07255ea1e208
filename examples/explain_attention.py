"""Explain attention: which head carries an edge, why it looks there, and what happens without it.

    python examples/explain_attention.py

With norms held, the head's score loses exactly what the graph says; with norms free to move, it is another number.
"""

from circuit_tracer import AttentionTarget, ReplacementModel, attribute
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.interventions import HeadEdit, Semantics, ablate, apply_edits, measure_patterns

model, labels = ReplacementModel.from_pretrained(MODEL, TRANSCODER), load_labels()
graph = attribute(PROMPT, model)
texas, austin = "0_78_7", "5_101_8"  # ids as in viewers: layer_feature_position, and an output

edge = graph.explain_edge(texas, austin, model)
layer, head = (first := edge.strongest(1)["first"][0]).layer, first.head
print(f"edge {edge.weight:.3f} = direct {edge.direct:.3f} + first heads {edge.weight - edge.direct:.3f}")
print(f"L{layer}H{head} picks up {first.weight / edge.weight:.0%} of it")

score = graph.explain_score(model, layer, head, -1, 7, "rest")
print(f"why it looks at {graph.token_texts[7]!r}: {score.score:.2f} of log attention over the rest, from")
for side in (score.query_side, score.key_side):
    for each in side.strongest(2):
        print(f"  {each.weight:+.2f}  {each.id}")

# A score makes a graph of its own: pruned, viewed and validated like any other.
why = attribute(PROMPT, model, attribution_targets=[AttentionTarget(layer, head, query=-1, key=7, versus="rest")])
print(why)

# Taken out: the head, and then what it looks by.
for edit in (HeadEdit(layer, head, "zero"), HeadEdit(layer, head, "mean")):
    token = next(token for token in apply_edits(model, graph, edit).tokens() if token.text == "Austin")
    print(f"{edit}: Austin {token.probability_before:.3f} -> {token.probability_after:.3f}")
for feature in ((0, 8, 3), (0, 7, 78)):  # "is", of which the query is made, and Texas, of which the key is
    for norms, moves in (("frozen", "constrained"), ("live", Semantics(freeze_attention=False))):
        found = measure_patterns(model, graph, ablate(feature), [(layer, head, -1)], moves)
        before, after = found.contrast(0, key=7, versus="rest")
        print(f"without {labels[feature[0], feature[2]]}, norms {norms}: {before:.2f} -> {after:.2f}")
