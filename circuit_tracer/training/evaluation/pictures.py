"""Pictures of an evaluation: NMSE and L0 by layer, and how densely features fire."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuit_tracer.graph.figures import require_matplotlib, save_figure
from circuit_tracer.training.evaluation.results import DENSITY_EDGES, Evaluation, HeldOutReconstruction

COLOURS = {"dictionary": "#3b6fb6", "random": "#b9b9b9", "per_layer": "#c77f2e"}
LABELS = {"dictionary": "this dictionary", "random": "random dictionary", "per_layer": "dictionary beside"}


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write nmse.png, l0.png and density.png; the same evaluation gives the same files.

    Raises CircuitTracerError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    painters: dict[str, Callable[[Any, Evaluation], None]] = {"nmse": _nmse, "l0": _l0, "density": _density}
    paths = []
    for name, paint in painters.items():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        paint(axes, evaluation)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(evaluation.results) > 1:
            axes.legend(frameon=False)
        paths.append(save_figure(figure, folder / f"{name}.png"))
    return paths


def _nmse(axes: Any, evaluation: Evaluation) -> None:
    _by_layer(axes, evaluation, lambda found: found.nmse)
    axes.set_ylabel("NMSE (0 is perfect, 1 is the mean)")


def _l0(axes: Any, evaluation: Evaluation) -> None:
    _by_layer(axes, evaluation, lambda found: found.l0)
    axes.set_ylabel("active features a token (L0)")


def _by_layer(axes: Any, evaluation: Evaluation, numbers: Callable[[HeldOutReconstruction], list[float]]) -> None:
    layers = evaluation.conditions["layers"]
    for name, result in evaluation.results.items():
        values = numbers(result.reconstruction)
        axes.plot(layers, values, marker="o", markersize=4, color=COLOURS[name], label=LABELS[name])
    axes.set_xlabel("layer")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _density(axes: Any, evaluation: Evaluation) -> None:
    places = [math.log10(edge) for edge in DENSITY_EDGES]
    for name, result in evaluation.results.items():
        found = result.reconstruction
        total = sum(found.features)
        shares = [sum(column) / total for column in zip(*found.density_histogram, strict=True)]
        never = f", {found.dead_share:.1%} never" if total else ""
        axes.stairs(
            shares, places, color=COLOURS[name], label=LABELS[name] + never, fill=name == "dictionary", alpha=0.8
        )
    tokens = next(iter(evaluation.results.values())).reconstruction.tokens
    axes.axvline(-math.log10(tokens), color="#555555", linewidth=0.8, linestyle=":")
    axes.set_xlim(min(-math.log10(tokens) - 0.5, -1), 0)
    axes.set_xlabel(f"log10 of the share of {tokens} tokens a feature is active on (dotted: one token)")
    axes.set_ylabel("share of all features")
