"""A probe: fit one, see what it reaches on groups that it has not seen, and explain why it fires.

    python examples/probe.py

"Dallas is in": is the place in a US state? Writes state.safetensors and why.html.
"""

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, TRANSCODER, load_labels, world
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.explain import explain
from circuit_tracer.probes.fit import fit
from circuit_tracer.probes.score import score

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
examples = [
    Example(f"{city} is in", label=one.kind == "state", group=one.name)  # groups stay on one side of a split
    for one in world.entities()
    for city in one.cities[:3]
]
made = fit(model, examples, layer=2, draws=100)
for scores in made.scores:
    print(f"{scores.name:18} AUC {scores.auc.value:.2f} on groups that were not seen")
made.probe.save("state.safetensors")

texts = [Example("Oakland is in"), Example("Munich is in")]
for text in score(model, made.probe, texts).texts:
    print(f"{text.text.text!r}: {text.score:+.2f}, {'fires' if text.score > made.probe.threshold else 'silent'}")

found = explain(model, made.probe, "Dallas is in", labels=load_labels(), top=3)
print(
    f"score {found.score:.3f}, which is the sum of {', '.join(f'{kind} {part:+.3f}' for kind, part in found.direct.items())}"
)
for each in found.features:
    print(f"{each.direct:+.2f} direct, {each.influence:.0%} of the influence: {each.what}")
for test in found.tests[-2:]:
    print(f"{test.name}: predicted {test.predicted['edges']:+.3f}, measured {test.measured['constrained']:+.3f}")
found.graph.to_html("why.html")
