"""Group a graph's nodes, name the groups, and tell the story, each sentence tested; then a picture for a paper.

    python examples/group.py

Writes dallas.safetensors (with groups and story), dallas.html, circuit.svg and story.md.
"""

from pathlib import Path

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.circuits import Grouping, group_nodes, keep_grouping
from circuit_tracer.circuits.naming import name_groups, titles
from circuit_tracer.circuits.story import Contrast, tell
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.features.kept import keep_features

model, labels = ReplacementModel.from_pretrained(MODEL, TRANSCODER), load_labels()


def grouped(prompt):
    """A graph that knows its features' labels and examples, and its named groups."""
    graph = attribute(prompt, model)
    keep_features(graph, FEATURES, labels)
    groups = group_nodes(graph, model, labels=labels, node_threshold=0.85)
    return graph, name_groups(graph, groups, labels=labels, model=model)


graph, groups = grouped(PROMPT)
circuit = keep_grouping(graph, groups)
names = titles(graph, Grouping(circuit.groups))
for number in circuit.order:
    if inputs := circuit.inputs(number, 0.1):
        print(f"{names[number]}  <-  " + ", ".join(f"{names[source]} {share:+.0%}" for source, share in inputs))

story = tell(graph, model, groups, contrasts=[Contrast(*grouped(PROMPT.replace("Dallas", "Oakland")))])
print(f"{sum(sentence.evidence.holds for sentence in story.sentences)} of {len(story.sentences)} sentences hold")
print(story.sentences[-1].text)

Path("story.md").write_text(story.markdown(), encoding="utf-8")
graph.plot("circuit.svg")
graph.to_html("dallas.html", node_threshold=0.85)
graph.save("dallas.safetensors")
