"""Dictionaries of a toy: the circuit itself, and what the package's trainer makes of its activations.

Letters: L layers, N prompts, D width.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch

from circuit_tracer.demo.capture import mlp_activations
from circuit_tracer.demo.contexts import Contexts
from circuit_tracer.demo.toys.network import Toy, language_model
from circuit_tracer.demo.train_transcoder import TranscoderRecipe, train_transcoder
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Kind = Literal["plt", "clt"]


def exact(toy: Toy) -> TranscoderSet:
    """The circuit's own units as per-layer transcoders without any error: graphs of it are the truth.

    Args:
        toy: The toy.

    Returns:
        A transcoder a layer, without error.
    """
    layers = {}
    for number, units in enumerate(toy.layers):
        weights = LayerWeights(toy.name, units.read_MD, units.write_MD, units.bias_M, torch.zeros(toy.width))
        layers[number] = SingleLayerTranscoder.from_weights(weights, number)
    return TranscoderSet(layers, "hook_resid_mid", "hook_mlp_out", toy.name)


def contexts(toy: Toy) -> Contexts:
    """What the MLPs read and write at the last token of every prompt."""
    model = language_model(toy)
    x_LNPD, y_LNPD = mlp_activations(model, model.model.embed_tokens(toy.prompts_NP))
    tokens = [tuple(row) for row in toy.prompts_NP.tolist()]
    return Contexts(x_LNPD[:, :, -1], y_LNPD[:, :, -1], toy.weight_N, tokens)


def trained(toy: Toy, kind: Kind, features: int, active: float, steps: int = 1000, seed: int = 0) -> Transcoders:
    """A dictionary of `features` a layer, of which `active` are on a prompt on average (some ten seconds on one core).

    Args:
        toy: The toy.
        kind: "plt" or "clt".
        features: How many a layer.
        active: Features that are on, on average a prompt.
        steps: Of training.
        seed: Of whatever is drawn at random.

    Returns:
        The trained dictionary.
    """
    recipe = TranscoderRecipe(
        n_features=features,
        active=active,
        steps=steps,
        batch=256,
        learning_rate=1e-2,
        dead_after=5000,
        balance=1.0,
        pre_activation=0.0,
        planted=False,  # what usual training makes of a known circuit
    )
    with tempfile.TemporaryDirectory() as place:
        folder, checkpoints = Path(place) / "transcoder", Path(place) / "checkpoints"
        train_transcoder(contexts(toy), recipe, seed, folder, checkpoints, toy.name, kind=kind)
        transcoders, _ = load_transcoder_from_hub(str(folder), device="cpu", dtype=torch.float32, lazy_decoder=False)
    return transcoders
