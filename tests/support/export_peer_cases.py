"""What circuit-tracer 0.5.0 and this package compute from the same exported files; imports torch and `circuit_tracer` only.

The module `circuit_tracer` is whichever of the two packages the interpreter has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "training" / "peer"
INPUTS, OUTPUTS = "inputs.safetensors", "outputs.safetensors"
# kind-activation-format of each exported dictionary
DICTIONARIES = (
    "clt-batch_topk-float32",
    "clt-jumprelu-bfloat16",
    "clt-relu-float32",
    "plt-topk-float32",
    "skip-batch_topk-bfloat16",
    "skip-relu-float32",
)


def outcomes(folder: Path, x_LPD: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations and reconstruction, by dictionary, of every dictionary in ``folder``."""
    from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

    found: dict[str, torch.Tensor] = {}
    for name in DICTIONARIES:
        transcoders: Any = load_transcoder_from_hub(str((folder / name).resolve()), dtype=torch.float32)[0]
        with torch.no_grad():
            activations = transcoders.encode(x_LPD)
            found[f"{name}/activations"] = activations
            found[f"{name}/outputs"] = transcoders.decode(activations.to_sparse(), x_LPD)
    return {name: tensor.detach().to_dense().contiguous() for name, tensor in found.items()}
