"""Steer: continue prompts with a feature exchanged, and with a vector added, beside the text without.

    python examples/steer.py

Writes california.safetensors, the vector, for `circuit-tracer steer --direction 1:california.safetensors=1`.
"""

import torch
from safetensors.torch import save_file

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER, load_labels, world
from circuit_tracer.interventions import Direction, Sampling, ablate, set_to, steer
from circuit_tracer.models.run import read

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
called = {label: feature for feature, label in load_labels().items()}
texas, california = called["Texas (places)"], called["California (places)"]  # (layer, feature)
few = Sampling(max_new_tokens=8)

# Features: everywhere, on the prompt and on what is written.
edits = [ablate(texas, at="all"), set_to(california, 3.6, at="all")]
for prompt in ("Dallas is in", "the capital of Texas is", PROMPT):
    result = steer(model, prompt, edits, few)
    print(f"{prompt}: {result.unsteered.text.strip()} | {result.steered.text.strip()}")

# A vector: the difference of what the last token holds behind layer 1, cities of California less cities of Texas.


def held(cities):
    """(D,) mean over "... is in"."""
    streams = (read(model.parts, model.ensure_tokenized(f"{city} is in"), [("hook_resid_post", 1)]) for city in cities)
    return torch.stack([stream["hook_resid_post", 1][0, -1] for stream in streams]).mean(0)


vector = held(world.entity("California").open_cities) - held(world.entity("Texas").open_cities)
save_file({"california": vector}, "california.safetensors")
for strength in (0.5, 1, 2, 4):
    text = steer(model, "Dallas is in", Direction(1, vector, strength), few).steered.text.strip()
    print(f"vector times {strength:g}: {text}")
