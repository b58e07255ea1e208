"""Pictures of an aggregate: the common circuit over its threshold, the features of labels, the families."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from circuit_tracer.graph.figures import figure_bytes, require_matplotlib
from circuit_tracer.graph.palette import PALETTES, Palette
from circuit_tracer.many.aggregate.aggregate import FOLDER, Aggregate
from circuit_tracer.many.aggregate.labels import speaking_for
from circuit_tracer.many.aggregate.overview import FamilyJson
from circuit_tracer.many.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_LABELS, SHOWN_ITEMS, SHOWN_FAMILIES = 6, 10, 6
FOUND = 0.05  # q below which a feature of a label is filled
_ROW = 0.24  # inches


def draw(aggregate: Aggregate, address: str, suffix: str = ".png") -> list[str]:
    """Write the pictures that there is something for into ``aggregate/`` of a folder or address; their names.

    Raises CircuitTracerError without matplotlib, InputError for a format that it cannot write.
    """
    store, names = Store.at(address), []
    for name, painter in PICTURES.items():
        figure = painter(aggregate)
        if figure is not None:
            names.append(f"{FOLDER}/{name}{suffix}")
            store.write(names[-1], figure_bytes(figure, suffix))
    return names


def draw_common(aggregate: Aggregate) -> Figure:
    """Left, how many features and edges a share of the graphs has; dashed, those that stay under every setting of pruning.
    Right, how much of a graph's influence they hold.
    """
    figure, (left, right), palette = _figure(9.0, 3.4, 2)
    common = aggregate.common
    for name, colour in (("features", palette.accent), ("edges", palette.positive)):
        x = common["threshold"]
        left.step(x, _positive(common[f"n_{name}"]), where="pre", color=colour, label=name)
        left.step(x, _positive(common[f"steady_{name}"]), where="pre", color=colour, linestyle="--", linewidth=1)
        right.step(x, common[f"influence_{name}"], where="pre", color=colour, label=name)
    left.plot([], [], color=palette.muted, linestyle="--", linewidth=1, label="under every pruning")
    left.set_yscale("log")
    _title(left, "features and edges in that many graphs", palette)
    _title(right, "share of a graph's kept influence that they hold", palette)
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        _caption(axes, f"at least this share of {aggregate.overview['n_graphs']} graphs", palette)
        axes.set_xlim(0, 1)
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_labels(aggregate: Aggregate) -> Figure | None:
    """A panel a label: the features that have most of a larger attribution in its graphs, with intervals; filled, if they are
    found at a false discovery rate of 5 %. None without labels.
    """
    table = aggregate.labels
    if "label" not in table:
        return None
    names = [str(name) for name in np.unique(table["label"])][:SHOWN_LABELS]
    chosen = {name: speaking_for(table, name, SHOWN_ITEMS) for name in names}
    chosen = {name: rows for name, rows in chosen.items() if len(rows)}
    if not chosen:
        return None
    called = dict(zip(aggregate.features["item"], aggregate.features["name"], strict=True))
    least = min(0.45, *(float(table["auc_low"][rows].min()) - 0.02 for rows in chosen.values()))
    heights = [len(rows) + 2.2 for rows in chosen.values()]
    figure, panels, palette = _figure(7.2, _ROW * sum(heights) + 0.5, len(chosen), heights)
    for axes, (name, rows) in zip(panels, chosen.items(), strict=True):
        y = np.arange(len(rows))[::-1]
        area, q = table["auc"][rows], table["q"][rows]
        axes.hlines(y, table["auc_low"][rows], table["auc_high"][rows], color=palette.muted, linewidth=1)
        fill = [palette.accent if value < FOUND else palette.panel for value in q]
        axes.scatter(area, y, s=26, color=fill, edgecolors=palette.accent, zorder=3)
        axes.axvline(0.5, color=palette.rule, linewidth=1, zorder=0)
        _names(axes, y, [_titled(item, called.get(item, "")) for item in table["item"][rows]])
        axes.set_xlim(least, 1.02)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        count = int(table["n_with"][rows[0]])
        total = count + int(table["n_without"][rows[0]])
        _title(axes, f"{_short(name)} ({count} of {total} graphs)", palette)
    _caption(
        panels[-1], f"AUC of the attribution, 95 % interval; filled: false discovery rate below {FOUND:.0%}", palette
    )
    return figure


def draw_families(aggregate: Aggregate) -> Figure | None:
    """A panel a family: its features with most influence; how many of its graphs have each (filled), and of the others
    (hollow).
    """
    families = [family for family in aggregate.overview["families"] if family["features"]][:SHOWN_FAMILIES]
    if not families:
        return None
    heights = [min(SHOWN_ITEMS, len(family["features"])) + 2.4 for family in families]
    figure, panels, palette = _figure(7.2, _ROW * sum(heights) + 0.5, len(families), heights)
    for axes, family in zip(panels, families, strict=True):
        _family(axes, family, palette)
    left_out = len(aggregate.overview["families"]) - len(families)
    more = f"\n{left_out} further families are not shown" if left_out > 0 else ""
    told = (
        "share of graphs that have the feature\n"
        f"filled: of the family, larger for more influence; hollow: of the others{more}"
    )
    _caption(panels[-1], told, palette)
    return figure


def _family(axes: Any, family: FamilyJson, palette: Palette) -> None:
    features = family["features"][:SHOWN_ITEMS]
    y = np.arange(len(features))[::-1]
    inside = np.array([feature["frequency"] for feature in features])
    elsewhere = np.array([np.nan if feature["elsewhere"] is None else feature["elsewhere"] for feature in features])
    influence = np.array([feature["influence"] for feature in features])
    axes.hlines(y, np.where(np.isnan(elsewhere), inside, elsewhere), inside, color=palette.rule, linewidth=2)
    axes.scatter(elsewhere, y, s=22, color=palette.panel, edgecolors=palette.muted, zorder=3)
    axes.scatter(inside, y, s=20 + 160 * influence / influence.max(), color=palette.accent, zorder=4, clip_on=False)
    _names(axes, y, [_titled(feature["item"], feature["name"]) for feature in features])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.8, len(features) - 0.2)
    labels = sorted(family["labels"].items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} {count}" for name, count in labels[:3]) + (", …" if len(labels) > 3 else "")
    graphs = "1 graph" if family["size"] == 1 else f"{family['size']} graphs"
    labels_shown = f" ({_short(shown, 30)})" if shown else ""
    _title(axes, f"family {family['family']}: {graphs}{labels_shown}, such as {_short(family['medoid'], 20)}", palette)


PICTURES: dict[str, Callable[[Aggregate], Figure | None]] = {
    "common": draw_common,
    "labels": draw_labels,
    "families": draw_families,
}


def _figure(
    width: float, height: float, panels: int, heights: list[float] | None = None
) -> tuple[Figure, Any, Palette]:
    """A figure with panels side by side, or below each other if they have heights."""
    require_matplotlib()
    import matplotlib.figure

    palette = PALETTES["light"]
    figure = matplotlib.figure.Figure(figsize=(width, height), facecolor=palette.panel, layout="constrained")
    shape = (1, panels) if heights is None else (panels, 1)
    axes = figure.subplots(*shape, squeeze=False, height_ratios=heights).ravel()
    for each in axes:
        each.tick_params(labelsize=8, colors=palette.ink, length=2)
        for side, spine in each.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(palette.rule)
    return figure, axes, palette


def _titled(item: str, name: str) -> str:
    return f"{_short(name)}  {item}" if name else item


def _short(text: str, most: int = 36) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _names(axes: Any, y: np.ndarray, names: list[str]) -> None:
    axes.set_yticks(y, names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _title(axes: Any, text: str, palette: Palette) -> None:
    axes.set_title(text, loc="left", fontsize=9, color=palette.ink, parse_math=False)


def _caption(axes: Any, text: str, palette: Palette) -> None:
    axes.set_xlabel(text, fontsize=8, color=palette.muted)


def _positive(values: np.ndarray) -> np.ndarray:
    """0 has no place on a logarithmic axis."""
    return np.where(values > 0, values, np.nan)


__all__ = ["PICTURES", "draw", "draw_common", "draw_families", "draw_labels"]
