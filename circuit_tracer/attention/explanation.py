"""One edge of a graph, split over the attention heads that it runs through (README.md §1).

Letters: L layers, H heads, n numbers of hops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.graph.edge_heads import HeadWeight


@dataclass(frozen=True)
class HeadPath:
    """What of an edge runs through exactly these heads, in this order.

    Attributes:
        heads: (layer, head) of each, from the source on.
        positions: The source's, then after each head the one that carries most (of the paths that came by the positions
            before it), the last being where the target reads.
        weight: Summed over all positions, in units of the edge.
    """

    heads: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]
    weight: float

    def __str__(self) -> str:
        hops = (f" -L{layer}H{head}-> {at}" for (layer, head), at in zip(self.heads, self.positions[1:], strict=True))
        return f"{self.weight:+.4g}: {self.positions[0]}{''.join(hops)}"


@dataclass(frozen=True)
class Rest:
    """What the listed paths leave of an edge less its direct part.

    Attributes:
        weight: Signed sum, exact.
        mass: Sum of the sizes of what it is made of, as far as it was taken apart: a lower bound of that over single paths.
        hops: (n,) of the signed sum, by hops.
    """

    weight: float
    mass: float
    hops: Tensor


@dataclass(frozen=True)
class EdgeExplanation:
    """direct + sum of `first` = direct + sum of `last` = sum of `hops` = the edge, with attention patterns frozen.

    Attributes:
        source: Number of its node.
        target: Number of its node.
        names: Of both.
        weight: Of the edge, in the graph.
        direct: What runs through no head.
        first: (L, H), by the first head of a path, at the source's token.
        last: (L, H), by the last head of a path, at the target's token.
        through: (L, H), all that runs through a head, which is what the edge loses with it; a path of k heads counts k
            times in its sum, so it is no share of the edge across layers.
        hops: (n,), by the number of heads.
        mean_hops: Sum of `through` over the edge; with parts of opposite signs it may lie outside of what single paths
            have.
        paths: Strongest first.
        rest: What they leave.
        residual: The largest difference between the three sums and the weight, relative to the products of single numbers
            that these are sums of.
    """

    source: int
    target: int
    names: tuple[str, str]
    weight: float
    direct: float
    first: Tensor
    last: Tensor
    through: Tensor
    hops: Tensor
    mean_hops: float
    paths: list[HeadPath]
    rest: Rest
    residual: float

    @typed
    def strongest(self, n: int = 3) -> dict[str, list[HeadWeight]]:
        """The n largest heads of `first`, `last` and `through`, by their size; heads without weight are left out."""
        return {name: strongest_heads(getattr(self, name), n) for name in ("first", "last", "through")}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the heads all that have weight, strongest first."""
        heads = {name: [list(one) for one in found] for name, found in self.strongest(self.first.numel()).items()}
        paths = [
            {"heads": [list(head) for head in path.heads], "positions": list(path.positions), "weight": path.weight}
            for path in self.paths
        ]
        return {
            "source": self.names[0],
            "target": self.names[1],
            "weight": self.weight,
            "direct": self.direct,
            **heads,
            "hops": self.hops.tolist(),
            "mean_hops": self.mean_hops,
            "paths": paths,
            "rest": {"weight": self.rest.weight, "mass": self.rest.mass, "hops": self.rest.hops.tolist()},
            "residual": self.residual,
        }


def strongest_heads(weight_LH: Tensor, n: int) -> list[HeadWeight]:
    """The n heads of largest |weight|, largest first, without those of none."""
    flat, n_heads = weight_LH.flatten(), weight_LH.shape[1]
    best = flat.abs().argsort(descending=True, stable=True)[: max(0, n)]
    found = zip(best.tolist(), flat[best].tolist(), strict=True)
    return [HeadWeight(at // n_heads, at % n_heads, weight) for at, weight in found if weight != 0]
