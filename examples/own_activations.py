"""Activations of your own: another engine runs the model and writes them down; the trainer reads them and loads no model.

    python examples/own_activations.py

The engine here is plain transformers with two hooks a layer. Writes acts/ and the run given/.
"""

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuit_tracer.demo import MODEL, world
from circuit_tracer.training.config.files import validate
from circuit_tracer.training.data import write_activations
from circuit_tracer.training.run.trainer import train

tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL)
layers, seen = model.model.layers, {}
for n, layer in enumerate(layers):  # what the MLP's norm reads, and what the MLP adds to the stream
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args, n=n: seen.update({("x", n): args[0]}))
    layer.mlp.register_forward_hook(lambda _, args, out, n=n: seen.update({("y", n): out}))


def batches(texts: list[str]) -> Iterator[dict[str, Tensor]]:
    """Rows (n, S, D) of x and y, and the number of the document that each is of."""
    for number, text in enumerate(texts):
        with torch.no_grad():
            model(tokenizer(text, return_tensors="pt").input_ids)
        # without the first token, on which attention rests
        rows = {name: torch.stack([seen[name, n][0, 1:] for n in range(len(layers))], 1) for name in "xy"}
        yield {**rows, "document": torch.full([len(rows["x"])], number)}


texts = random.Random(0).sample([one.text for one in world.transcoder_training()], 1500)
folder = write_activations("acts", batches(texts), model=MODEL, layers=range(len(layers)))
config = {
    "model": {"name": MODEL},
    "data": {
        "kind": "activations",
        "path": str(folder),
        "epochs": None,
        "buffer_tokens": 8192,
        "statistics_tokens": 8192,
    },
    "dictionary": {"features": 128},
    "sparsity": {"active": 8.0},
    "run": {"out": "given", "tokens": 20_000, "batch": 512, "threads": 1},
}
found = train(validate(config)).evaluation
print(
    f"{found['results']['dictionary']['reconstruction']['mean_nmse']:.3f} of the MLPs' output is missing on held-out rows"
)
print(f"not measured: {'; '.join(found['not_measured'])}")
