"""Train a cross-layer transcoder on the embedded model, go on with it, and trace a prompt with what came out.

    python examples/train.py

Some seconds of one core. Writes world.txt and the runs first/ and warm/.
"""

import random
from pathlib import Path

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, world
from circuit_tracer.training.config.files import validate
from circuit_tracer.training.run.trainer import train

text = [one.text for one in world.transcoder_training()]
random.Random(0).shuffle(text)  # pieces of the file are held out, so it must not be sorted
Path("world.txt").write_text("\n".join(text), encoding="utf-8")

config = {
    "model": {"name": MODEL},
    "data": {
        "kind": "text",
        "path": "world.txt",
        "context_length": 64,
        "epochs": None,
        "buffer_tokens": 8192,
        "statistics_tokens": 8192,
    },
    "dictionary": {"features": 128},
    "sparsity": {"active": 8.0},
    "evaluation": {"prompts": ["the capital of Texas is"], "held_out_prompts": 0, "faithfulness": False},
    "run": {"out": "first", "tokens": 20_000, "batch": 512, "threads": 1},
}
first = train(validate(config)).evaluation["results"]["dictionary"]
print(f"39 steps: {first['reconstruction']['mean_nmse']:.3f} of the MLPs' output is missing")

longer = {**config, "run": {**config["run"], "tokens": 40_000}}
more = train(validate(longer), resume=True).evaluation["results"]
replaced = {name: more[name]["replacement"]["top1"] for name in ("dictionary", "random")}
print(f"78 steps: {more['dictionary']['reconstruction']['mean_nmse']:.3f}")
print(f"top-1 with all MLPs replaced: {replaced['dictionary']:.0%}, by a random dictionary {replaced['random']:.0%}")

start = {**config["run"], "out": "warm", "start_from": "first"}
jumprelu = {**config, "sparsity": {"active": 8.0, "activation": "jumprelu"}, "run": start}
warm = train(validate(jumprelu)).evaluation["results"]["dictionary"]
print(f"from there with JumpReLU: {warm['reconstruction']['mean_nmse']:.3f}")

model = ReplacementModel.from_pretrained(MODEL, "first/transcoder")
graph = attribute("the capital of Texas is", model)
print(f"traced with it: {graph}")
