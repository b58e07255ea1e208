"""Heads as a picture: layers up, heads across, a panel a score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from circuit_tracer.graph.figures import require_matplotlib, save_figure

ACROSS = 3  # panels

Panel = tuple[Tensor, str, tuple[float, float] | None]  # scores (L, H), what they are, what they lie between


def draw_heads(panels: Mapping[str, Panel], title: str, path: str | Path) -> Path:
    """Draw scores by name; those that no head has are left out. Heads without a score are grey.

    Raises CircuitTracerError without matplotlib, InputError for a suffix that is no format of pictures.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    shown = {name: panel for name, panel in panels.items() if bool(panel[0].isfinite().any())}
    n_layers, n_heads = next(iter(panels.values()))[0].shape
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    size = (across * max(2.6, 0.16 * n_heads + 1.4), down * max(1.8, 0.13 * n_layers + 0.9) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (name, panel) in zip(axes.flat, shown.items(), strict=False):
        image = _draw(axis, name, panel)
        figure.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    return save_figure(figure, Path(path))


def _draw(axis: Any, name: str, panel: Panel) -> Any:
    """A heat map: from 0 up, or both ways from 0 where a score can be negative."""
    scores, what, bounds = panel
    values = scores.nan_to_num(nan=0.0)
    low, high = bounds or (min(0.0, float(values.min())), max(0.0, float(values.max())))
    both = low < 0
    limit = max(-low, high) or 1.0
    axis.set_facecolor("0.85")
    image = axis.imshow(
        scores.numpy(), cmap="RdBu_r" if both else "viridis", vmin=-limit if both else 0.0, vmax=limit,
        origin="lower", aspect="auto", interpolation="nearest",
    )  # fmt: skip
    axis.set_title(f"{name}\n{what}", fontsize=6)
    axis.set_xlabel("head", fontsize=6)
    axis.set_ylabel("layer", fontsize=6)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=6)
    return image
