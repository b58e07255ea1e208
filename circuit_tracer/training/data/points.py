"""The points of a layer that training reads, and the modules whose input or output they are.

Names are those of models/frozen.py (transcoders) and `hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` (sparse
autoencoders). Letters: S layers read, n tokens (sequences x positions), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from circuit_tracer.errors import InputError
from circuit_tracer.models.frozen import check_hooks
from circuit_tracer.models.parts import LayerParts, ModelParts
from circuit_tracer.training.config.schema import DictionarySection

Keep = Callable[[Tensor], None]  # takes an activation (n, D)


@dataclass(frozen=True)
class Points:
    """What a dictionary reads of the model: the layers, and the two points of each (the same one for an sae)."""

    layers: tuple[int, ...]  # S, ascending
    input: str
    output: str

    @classmethod
    def of(cls, dictionary: DictionarySection, parts: ModelParts) -> Points:
        """From a configuration. Raises InputError for a layer the model has not, CompatibilityError for a point it has not."""
        n_layers = parts.config.n_layers
        layers = tuple(range(n_layers) if dictionary.layers is None else dictionary.layers)
        if max(layers) >= n_layers:
            raise InputError(f"dictionary.layers names layer {max(layers)}; the model's layers are 0 to {n_layers - 1}")
        if dictionary.kind == "sae":
            return cls(layers, dictionary.point, dictionary.point)
        check_hooks(parts, dictionary.input_hook, dictionary.output_hook)
        return cls(layers, dictionary.input_hook, dictionary.output_hook)

    @property
    def same(self) -> bool:
        """Whether the dictionary writes where it reads."""
        return self.input == self.output


def listen(layer: LayerParts, point: str, keep: Keep) -> Any:
    """Hook that calls `keep` with the activation at a point whenever the model runs; returns its handle."""
    if point == "hook_resid_pre":
        return _on_input(layer.module, keep)
    if point == "hook_resid_post":
        return _on_output(layer.module, keep)
    if point == "mlp.hook_in":
        return _on_input(layer.mlp, keep)
    if point == "mlp.hook_out":
        return _on_output(layer.mlp, keep)
    if point == "hook_mlp_out":
        return _on_output(layer.mlp if layer.mlp_post_norm is None else layer.mlp_post_norm.module, keep)
    reader = layer.mlp if layer.mlp_norm is None else layer.mlp_norm.module
    return _on_input(reader, keep if point == "hook_resid_mid" else _normalised(layer, keep))


def _on_input(module: nn.Module, keep: Keep) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor], kwargs: dict[str, Any]) -> None:
        keep(_rows(args[0] if args else kwargs["hidden_states"]))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, keep: Keep) -> Any:
    def hook(module: nn.Module, args: Sequence[Tensor], output: Any) -> None:
        keep(_rows(output[0] if isinstance(output, tuple) else output))

    return module.register_forward_hook(hook)


def _normalised(layer: LayerParts, keep: Keep) -> Keep:
    """`keep`, given the norm's value before its gain (ln2.hook_normalized)."""
    assert layer.mlp_norm is not None  # check_hooks
    norm = layer.mlp_norm.parameters

    def kept(x_nD: Tensor) -> None:
        x = x_nD.to(norm.gain.dtype)
        keep(norm.freeze(norm.inverse_sigma(x)).normalise(x).to(x_nD.dtype))

    return kept


def _rows(activation: Tensor) -> Tensor:
    return activation.detach().reshape(-1, activation.shape[-1])
