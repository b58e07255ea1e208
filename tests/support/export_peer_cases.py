"""What circuit-tracer 0.5.0 and this package compute from the same exported files; imports torch and `circuit_tracer` only.

The module `circuit_tracer` is whichever of the two packages the interpreter has. Where config.yaml says TopK, circuit-tracer's
TopK is put into its transcoders by hand: its tag v0.5.0 does that in loading, the 0.5.0 of PyPI knows no such key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "training" / "peer"
INPUTS, OUTPUTS, REFUSALS = "inputs.safetensors", "outputs.safetensors", "refusals.json"
# kind-activation-format of each exported dictionary
DICTIONARIES = (
    "clt-batch_topk-float32",
    "clt-jumprelu-bfloat16",
    "clt-relu-float32",
    "plt-topk-float32",
    "skip-batch_topk-bfloat16",
    "skip-relu-float32",
    "skip-topk-bfloat16",
)
REFUSED = ("clt-topk-float32",)  # by circuit-tracer: they would be taken for ReLU


def outcomes(folder: Path, x_LPD: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations and reconstruction, by dictionary, of every dictionary in ``folder``."""
    from circuit_tracer.transcoder.activation_functions import TopK
    from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

    found: dict[str, torch.Tensor] = {}
    for name in DICTIONARIES:
        loaded: tuple[Any, Any] = load_transcoder_from_hub(str((folder / name).resolve()), dtype=torch.float32)
        transcoders, config = loaded
        if config.get("activation") == "topk":
            for transcoder in transcoders:
                if not isinstance(transcoder.activation_function, TopK):
                    transcoder.activation_function = TopK(config["k"])
        with torch.no_grad():
            activations = transcoders.encode(x_LPD)
            found[f"{name}/activations"] = activations
            found[f"{name}/outputs"] = transcoders.decode(activations.to_sparse(), x_LPD)
    return {name: tensor.detach().to_dense().contiguous() for name, tensor in found.items()}


def refusals(folder: Path) -> dict[str, str]:
    """What loading says, by dictionary, of those in ``folder`` that cannot be."""
    from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

    said = {}
    for name in REFUSED:
        try:
            load_transcoder_from_hub(str((folder / name).resolve()))
        except ValueError as error:
            said[name] = str(error)
    return said
