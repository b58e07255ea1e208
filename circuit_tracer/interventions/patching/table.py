"""The result of patching: one row for each activation that was replaced."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.files import atomic_write

Mode = Literal["denoising", "noising"]


@dataclass(frozen=True)
class PatchTable:
    """n patches, column by column.

    Attributes:
        metric: Its label.
        base: The metric of the run that was patched: corrupted for denoising, clean for noising.
        donor: The metric of the run that activations came from.
        tokens: Text of the P tokens, both where the prompts differ.
        site: resid, attn_out, mlp_out, head or feature.
        layer: int64 (n,).
        position: int64 (n,); -1: all at once.
        unit: int64 (n,) the head or feature; -1 for neither.
        value: (n,) the metric of the patched run.
        estimated: By gradients, not by runs.
    """

    mode: Mode
    metric: str
    base: float
    donor: float
    tokens: list[str]
    site: list[str]
    layer: Tensor
    position: Tensor
    unit: Tensor
    value: Tensor
    estimated: bool = False

    def __len__(self) -> int:
        return len(self.site)

    @property
    def effect(self) -> Tensor:
        """(n,) share of the way from base to donor: 0 nothing happened, 1 the patched run is as the donor's."""
        return (self.value - self.base) / (self.donor - self.base)

    def rows(self) -> list[dict[str, Any]]:
        """Plain values, a dictionary a patch; what does not apply is None."""
        columns = (self.site, self.layer.tolist(), self.position.tolist(), self.unit.tolist(), self.value.tolist())
        return [
            {
                "site": site,
                "layer": layer,
                "position": None if position < 0 else position,
                "token": None if position < 0 else self.tokens[position],
                "unit": None if unit < 0 else unit,
                "value": value,
                "effect": effect,
            }
            for site, layer, position, unit, value, effect in zip(*columns, self.effect.tolist(), strict=True)
        ]

    def largest(self, count: int = 10) -> list[dict[str, Any]]:
        """Rows of the largest effects, of either sign."""
        rows, order = self.rows(), torch.argsort(self.effect.abs(), descending=True, stable=True)
        return [rows[number] for number in order[:count].tolist()]

    def grid(self, site: str) -> Tensor:
        """Effects of a site as an array: (L, P); (L, H, P) for heads. One column if positions were patched all at once;
        NaN where nothing was patched. InputError for a site that is not in the table, or features, which are no grid.
        """
        chosen = torch.tensor([each == site for each in self.site], dtype=torch.bool)
        if site == "feature" or not chosen.any():
            known = [each for each in dict.fromkeys(self.site) if each != "feature"]
            raise InputError(f"no grid of {site!r} in this table; there are {', '.join(known) or 'none'}")
        together = bool((self.position[chosen] < 0).all())
        n_pos = 1 if together else len(self.tokens)
        shape = (int(self.layer[chosen].max()) + 1, max(int(self.unit[chosen].max()) + 1, 1), n_pos)
        grid = torch.full(shape, float("nan"), dtype=torch.float64)
        places = (self.layer[chosen], self.unit[chosen].clamp_min(0), self.position[chosen].clamp_min(0))
        grid[places] = self.effect[chosen].double()
        return grid if site == "head" else grid[:, 0]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows with a header."""
        rows = self.rows()
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=["site", "layer", "position", "token", "unit", "value", "effect"])
            writer.writeheader()
            writer.writerows(rows)
        return Path(path)

    def draw(self, path: str | Path) -> Path:
        """Write the heat map of every site; see `patch_picture.draw_patching`."""
        from circuit_tracer.interventions.patching.picture import draw_patching

        return draw_patching(self, path)

    def __repr__(self) -> str:
        kind = "estimated by gradients" if self.estimated else "measured"
        best = self.largest(1)[0] if len(self) else None
        shown = (
            ""
            if best is None
            else f"; largest {best['effect']:.2f} at {best['site']} {best['layer']}, {best['token']!r}"
        )
        return f"PatchTable({self.mode}, {self.metric}: {self.base:.3f} -> {self.donor:.3f}, {len(self)} {kind}{shown})"
