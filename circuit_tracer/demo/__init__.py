"""The embedded default: a tiny language model, its transcoder, and the small world whose truth is known.

The weights are made by ``recipe.train`` (the command ``circuit-tracer demo train``); ``weights/README.md`` is their card.
"""

from __future__ import annotations

import json
from pathlib import Path

PROMPT = "the capital of the state containing Dallas is"


def demo_folder() -> Path:
    """The folder of the shipped weights.

    Returns:
        The folder: model/, transcoder/, labels.json, features/, metrics.json, README.md.
    """
    return Path(__file__).parent / "weights"


MODEL = str(demo_folder() / "model")
TRANSCODER = str(demo_folder() / "transcoder")
FEATURES = str(demo_folder() / "features")


def load_labels() -> dict[tuple[int, int], str]:
    """What each feature of the shipped transcoder fires on in the world.

    Returns:
        Texts by (layer, feature).
    """
    labels = json.loads((demo_folder() / "labels.json").read_text(encoding="utf-8"))
    return {(int(layer), int(feature)): label for layer, row in labels.items() for feature, label in row.items()}
