"""Compare two graphs: what makes the answer of one prompt another one's, node by node, so that it adds up.

    python examples/compare.py

Writes comparison.html, a page with both graphs.
"""

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, TRANSCODER, load_labels
from circuit_tracer.features.kept import keep_features
from circuit_tracer.interventions import ablate, attribute_edited
from circuit_tracer.many.comparison import compare
from circuit_tracer.viewer.comparison import write_comparison_page

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
targets = ["Austin", "Sacramento"]  # a comparison needs a target that both graphs have
prompt = "the capital of the state containing {} is"
dallas = attribute(prompt.format("Dallas"), model, attribution_targets=targets)
oakland = attribute(prompt.format("Oakland"), model, attribution_targets=targets)
for graph in (dallas, oakland):
    keep_features(graph, labels=load_labels())

found = compare(dallas, oakland, target="Austin")
print(f"{found.target}: {found.a.value:.2f} after Dallas, {found.b.value:.2f} after Oakland")
print(f"the nodes account for {found.accounted:+.4f} of {found.difference:+.4f}")
for node in found.largest(3):
    print(f"{node.difference:+.2f}  {node.label or node.kind}")
write_comparison_page(found, "comparison.html")

# the same prompt before and after an intervention
texas = ablate((0, 78), at=7)
without = attribute_edited(dallas.input_tokens, model, texas, attribution_targets=targets)
edited = compare(dallas, without, target="Austin")
print(f"without 'Texas (places)' at Dallas: {edited.difference:+.2f}, accounted for {edited.accounted:+.2f}")
