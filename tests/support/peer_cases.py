"""Interventions on a tiny Llama, to be done by circuit-tracer 0.5.0 and by this package; imports torch only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "interventions" / "peer"
OUTPUTS = FOLDER / "outputs.safetensors"
TRANSCODERS = ("clt", "plt", "plt-skip")
IDS = [1, 17, 4, 33, 17, 9]

PLACES: dict[str, list[Any]] = {
    "one": [(1, 3, 5, 2.0)],
    "several": [(0, 2, 3, 1.5), (0, 2, 4, 0.0), (1, 4, 7, -2.0), (2, 5, 1, 3.0), (0, 2, 3, 0.5)],
    "slices": [(0, slice(2, None), 6, 1.0), (1, slice(1, 4), 2, 0.0)],
    "tensors": [
        (1, torch.tensor([2, 4]), torch.tensor([3, 8]), torch.tensor([1.0, 2.0])),
        (0, -1, torch.tensor(9), 1.25),
    ],
    "first position": [(0, 0, 2, 1.0), (1, 3, 3, 1.0)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "live attention": {"freeze_attention": False},
    "pre-activations": {"apply_activation_function": False},
    "all held": {"constrained_layers": range(3)},
    "all held, pre-activations": {"constrained_layers": range(3), "apply_activation_function": False},
    "last two held": {"constrained_layers": range(1, 3)},
    "first two held": {"constrained_layers": range(2), "freeze_attention": False},
}
GENERATION = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False}


def outcomes(model: Any, prompt: Any, transcoder: str) -> dict[str, torch.Tensor]:
    """Logits and activations of every case, by name."""
    found: dict[str, torch.Tensor] = {}
    found[f"{transcoder}/clean/logits"], found[f"{transcoder}/clean/activations"] = model.get_activations(prompt)
    for place, interventions in PLACES.items():
        for option, settings in OPTIONS.items():
            name = f"{transcoder}/{place}/{option}"
            logits, activations = model.feature_intervention(prompt, interventions, **settings)
            found[f"{name}/logits"], found[f"{name}/activations"] = logits, activations
    for option in ("default", "all held"):
        name = f"{transcoder}/generation/{option}"
        text, logits, activations = model.feature_intervention_generate(
            prompt[None], PLACES["slices"], verbose=False, **OPTIONS[option], **GENERATION
        )
        found[f"{name}/logits"], found[f"{name}/activations"] = logits, activations
        if not isinstance(text, str):  # circuit-tracer gives ids for ids
            text = model.tokenizer.decode(text[0], skip_special_tokens=True)
        found[f"{name}/text"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}
