"""Publish: a graph as files that others open, and a dictionary as a folder that a hub takes; nothing is sent.

    python examples/publish.py

Writes page/, for any web server, native/, the dictionary, and published/, what `circuit-tracer push` would upload.
"""

import json
from pathlib import Path

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.errors import InputError
from circuit_tracer.features.kept import keep_features
from circuit_tracer.neuronpedia import Neuronpedia
from circuit_tracer.training.export.push import collect, copy_to
from circuit_tracer.transcoders.loading import load_dictionary, save_transcoders
from circuit_tracer.viewer.upload import Parcel, graph_link

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
graph = attribute(PROMPT, model)
keep_features(graph, FEATURES, load_labels())  # examples and labels travel in the graph's own file

# one file that opens offline; and the files of a viewer
Path("page").mkdir(exist_ok=True)
graph.save("page/dallas.safetensors")
print(f"{graph.to_html('page/index.html').stat().st_size / 1e3:.0f} kB: page/index.html")

# Neuronpedia: checked as it would check, and not sent
path = graph.to_json("dallas", "page", target="neuronpedia", scan="gemma-2-2b", labels=load_labels())
parcel = Parcel.of(json.loads(path.read_text(encoding="utf-8")))
print(f"{len(parcel.data):,} bytes for {graph_link(Neuronpedia(), parcel)}")

# the dictionary: any layout becomes native files; nobody publishes one without a card
transcoders, config = load_dictionary(TRANSCODER, device="cpu", dtype=None)
save_transcoders(transcoders, "native", "you/your-model")
try:
    collect("native")
except InputError as error:
    print(f"refused: {str(error)[:75]}...")
Path("native/README.md").write_text("Trained on the embedded world.", encoding="utf-8")
publication = collect("native")
print(f"{len(publication.files)} files, {publication.bytes / 1e6:.1f} MB: {copy_to(publication, 'published').name}/")
