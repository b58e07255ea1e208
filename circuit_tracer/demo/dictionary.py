"""The demo's cross-layer transcoder as dense tensors: small enough for that, and all that its training and tests need.

Shapes: L layers, F features a layer, D d_model, B rows of activations. Files: circuit-tracer's native CLT layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.files import atomic_write, require_writable_folder

INPUT_HOOK = "hook_resid_mid"
OUTPUT_HOOK = "hook_mlp_out"


@dataclass
class DenseTranscoder:
    """A JumpReLU cross-layer transcoder in the model's own space; decoder of layer l writes to layers l, l+1, ..."""

    W_enc_LFD: Tensor
    b_enc_LF: Tensor
    threshold_LF: Tensor
    W_dec: list[Tensor]  # one a layer, (F, L - l, D)
    b_dec_LD: Tensor

    @property
    def n_layers(self) -> int:
        return self.W_enc_LFD.shape[0]

    @property
    def n_features(self) -> int:
        return self.W_enc_LFD.shape[1]

    def encode(self, layer: int, x_BD: Tensor) -> Tensor:
        """Activations (..., F) of one layer: pre * [pre > threshold], pre = x @ W_enc.T + b_enc."""
        pre_BF = x_BD @ self.W_enc_LFD[layer].T + self.b_enc_LF[layer]
        return pre_BF * (pre_BF > self.threshold_LF[layer])

    def write(self, layer: int, activation_BF: Tensor) -> Tensor:
        """What these activations of one layer add to its own and all later layers' MLP outputs: (..., L - layer, D)."""
        n_targets, d_model = self.W_dec[layer].shape[1:]
        return (activation_BF @ self.W_dec[layer].flatten(1)).unflatten(-1, (n_targets, d_model))

    def reconstruct(self, x_LBD: Tensor) -> Tensor:
        """The MLP outputs (L, ..., D) predicted from the inputs of all layers."""
        shape = [self.n_layers] + [1] * (x_LBD.ndim - 2) + [x_LBD.shape[-1]]
        y_LBD = self.b_dec_LD.view(shape).expand_as(x_LBD).clone()
        for layer in range(self.n_layers):
            y_LBD[layer:] += self.write(layer, self.encode(layer, x_LBD[layer])).movedim(-2, 0)
        return y_LBD

    def save(self, folder: str | Path, model_name: str, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write config.yaml, W_enc_{l}.safetensors and W_dec_{l}.safetensors; weights in ``dtype``, biases in fp32."""
        import yaml
        from safetensors.torch import save_file

        folder = require_writable_folder(folder)
        for layer in range(self.n_layers):
            encoder = {
                f"W_enc_{layer}": self.W_enc_LFD[layer].to(dtype).contiguous(),
                f"b_enc_{layer}": self.b_enc_LF[layer].float().contiguous(),
                f"b_dec_{layer}": self.b_dec_LD[layer].float().contiguous(),
                f"threshold_{layer}": self.threshold_LF[layer].float().contiguous(),
            }
            with atomic_write(folder / f"W_enc_{layer}.safetensors") as path:
                save_file(encoder, path)
            with atomic_write(folder / f"W_dec_{layer}.safetensors") as path:
                save_file({f"W_dec_{layer}": self.W_dec[layer].to(dtype).contiguous()}, path)
        config = {
            "model_name": model_name,
            "model_kind": "cross_layer_transcoder",
            "feature_input_hook": INPUT_HOOK,
            "feature_output_hook": OUTPUT_HOOK,
            "scan": "circuit-tracing-demo",
        }
        with atomic_write(folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> DenseTranscoder:
        """Read what ``save`` wrote, in fp32."""
        from safetensors.torch import load_file

        folder = Path(folder)
        n_layers = len(list(folder.glob("W_enc_*.safetensors")))
        encoders = [load_file(folder / f"W_enc_{layer}.safetensors") for layer in range(n_layers)]
        decoders = [load_file(folder / f"W_dec_{layer}.safetensors") for layer in range(n_layers)]

        def stacked(name: str) -> Tensor:
            return torch.stack([tensors[f"{name}_{layer}"].float() for layer, tensors in enumerate(encoders)])

        return cls(
            stacked("W_enc"),
            stacked("b_enc"),
            stacked("threshold"),
            [tensors[f"W_dec_{layer}"].float() for layer, tensors in enumerate(decoders)],
            stacked("b_dec"),
        )

    def rounded(self, dtype: torch.dtype = torch.bfloat16) -> DenseTranscoder:
        """The dictionary as ``save`` and ``load`` would return it."""
        return DenseTranscoder(
            self.W_enc_LFD.to(dtype).float(),
            self.b_enc_LF.float(),
            self.threshold_LF.float(),
            [decoder.to(dtype).float() for decoder in self.W_dec],
            self.b_dec_LD.float(),
        )

    def detached(self) -> DenseTranscoder:
        """The same numbers without autograd history."""
        return DenseTranscoder(
            self.W_enc_LFD.detach().clone(),
            self.b_enc_LF.detach().clone(),
            self.threshold_LF.detach().clone(),
            [decoder.detach().clone() for decoder in self.W_dec],
            self.b_dec_LD.detach().clone(),
        )


def count_active(activations: Sequence[Tensor]) -> Tensor:
    """Mean number of active features a token, one entry a layer, from each layer's activations (..., F)."""
    return torch.stack([(one != 0).sum(-1).float().mean() for one in activations])
