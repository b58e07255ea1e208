"""Label features: read text once, see what each feature fires on, let a language model name it, and score the name.

    python examples/label_features.py

A server that speaks OpenAI's chat protocol will do; the one here is a stand-in, which says the most frequent marked word.
Writes graph.safetensors and features/, with features/labels.json.
"""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
from circuit_tracer.demo.features import corpus_of
from circuit_tracer.features import BuildSettings, FeatureFolder, build_features
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.interpret import Interpreter, marked_text
from circuit_tracer.features.labels import add_labels, load_labels
from circuit_tracer.features.wanted import features_of_graphs


class StandIn(BaseHTTPRequestHandler):
    """POST /v1/chat/completions: a name for marked texts, or the numbers of the texts that hold the name."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        if name := re.match(r"Feature: (.*)", asked):
            said = ", ".join(re.findall(rf"(?m)^(\d+)\. .*\b{re.escape(name[1])}\b", asked))
        else:
            said = Counter(re.findall(r"<<(.*?)>>", asked)).most_common(1)[0][0].strip()
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
kept = attribute(PROMPT, model).save("graph.safetensors")
build_features(model, corpus_of(model.tokenizer), "features", BuildSettings(), wanted=features_of_graphs([kept]))
features = FeatureFolder("features")
texas = features.get((0, 78))
strongest = texas["examples_quantiles"][0]["examples"][0]
print(f"0/78: {texas['n_active']} of {texas['n_tokens']:,} tokens, such as {marked_text(strongest, texas['act_max'])}")

server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
threading.Thread(target=server.serve_forever, daemon=True).start()
chat = ChatModel("stand-in", f"http://127.0.0.1:{server.server_port}/v1", features.folder / ".answers")
interpreter, places = Interpreter(features, chat), list(features)
asked = interpreter.estimate(places).requests
add_labels(features.folder, interpreter.interpret(places))
print(f"{asked} questions for {len(places)} features; asked again: {interpreter.estimate(places).requests} questions")
for place in ((0, 78), (0, 9), (1, 120)):
    label = load_labels(features.folder)[place]
    print(f"{place}: {label.text!r}, by {label.source}, score {label.score}")
