"""Heat maps of patching: layers up, tokens across, one panel a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.graph.figures import require_matplotlib, save_figure
from circuit_tracer.interventions.patching.table import PatchTable

_TITLES = {"resid": "residual stream", "attn_out": "attention output", "mlp_out": "MLP output", "head": "heads"}


def draw_patching(table: PatchTable, path: str | Path) -> Path:
    """Draw the effects into an SVG, PNG or PDF file (by suffix) and return its path.

    Heads are rows layer.head; features are not drawn. Raises CircuitTracerError without matplotlib, InputError for a table
    of features only, or another suffix.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    sites = [site for site in dict.fromkeys(table.site) if site != "feature"]
    if not sites:
        raise InputError(
            "this table holds features only, which are no heat map; patch resid, attn_out, mlp_out or head"
        )
    grids = [table.grid(site) for site in sites]
    limit = max(1.0, *(float(grid.nan_to_num().abs().max()) for grid in grids))
    heights = [0.32 * max(3, grid.flatten(0, -2).shape[0]) for grid in grids]
    width = max(4.0, 0.5 * grids[0].shape[-1] + 1.5)
    figure = Figure(figsize=(width, sum(heights) + 1.3 * len(sites)), layout="constrained")
    axes = figure.subplots(len(sites), 1, squeeze=False, height_ratios=heights)
    for panel, site, grid in zip(axes[:, 0], sites, grids, strict=True):
        image = _panel(panel, table, site, grid, limit)
    figure.colorbar(image, ax=axes[:, 0].tolist(), label=f"effect: 0 as {_runs(table)[0]}, 1 as {_runs(table)[1]}")
    figure.suptitle(
        f"{table.mode}{' (estimated by gradients)' if table.estimated else ''}: {table.metric}", fontsize=10
    )
    return save_figure(figure, Path(path))


def _runs(table: PatchTable) -> tuple[str, str]:
    return ("corrupted", "clean") if table.mode == "denoising" else ("clean", "corrupted")


def _panel(panel: Any, table: PatchTable, site: str, grid: Any, limit: float) -> Any:
    flat = grid.flatten(0, -2)
    image = panel.imshow(
        flat.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto", interpolation="nearest"
    )
    n_units = grid.shape[1] if grid.ndim == 3 else 1
    names = [f"{row // n_units}.{row % n_units}" if grid.ndim == 3 else str(row) for row in range(flat.shape[0])]
    step = max(1, len(names) // 24)
    panel.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    tokens = ["all positions"] if flat.shape[1] == 1 < len(table.tokens) else table.tokens
    shown = [token.strip().replace("$", r"\$") for token in tokens]
    panel.set_xticks(range(len(shown)), shown, rotation=45, ha="right", fontsize=7)
    panel.set_ylabel("layer.head" if grid.ndim == 3 else "layer", fontsize=8)
    panel.set_title(_TITLES.get(site, site), fontsize=9)
    return image
