"""What each row of a graph must add up to, how closely it is promised to, and how well the dictionary rebuilds the model.

Whatever makes a graph, or reads one from a file that holds all of it, calls ``graph.require_balance(max_residual, remedy)``
before it hands it out: NumericalError, naming the worst row, for a graph that breaks the promise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph.checks import require_tensors
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.nodes import KIND_NAMES, NodeKind, NodeTable

# The largest relative residual of a row that is promised, by the dtype of the model's weights, which rounds its activations;
# sums are in float32 at least. The worst of all cases of tests/attribution: 2e-15, 7e-7, 1.5e-3 and 1.1e-2.
PROMISED_RESIDUAL = {"float64": 1e-10, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}

_MOST_NAMED = 8  # layers in a warning


def promised_residual(*dtypes: torch.dtype | str | None) -> float:
    """The largest of what is promised for some dtypes, of those that are known."""
    return max(PROMISED_RESIDUAL.get(str(dtype).removeprefix("torch."), 0.0) for dtype in dtypes)


def allowed_gap(
    parts: Tensor, products: Tensor, traced: str | None, here: str | None, stored: torch.dtype | None = None
) -> Tensor:
    """By how much sums that are made again may miss what they should be: what is promised for the dtypes of the model, in the
    trace and here, and of stored numbers, of the mass of the parts that are added up; and for the dtype that they are made in,
    of the mass of the products of single numbers in these parts. Where products cancel, a part is small; its rounding is not.
    """
    made_in = ("float64" if dtype == "float64" else "float32" for dtype in (traced, here))
    return promised_residual(traced, here, stored) * parts + promised_residual(*made_in) * products


class ReconstructionWarning(UserWarning):
    """The transcoders do not rebuild this model."""


@dataclass
class RowBalance:
    """The sum rule of the frozen, linear network, one entry a node (N,), zero for error and token rows, which have no inputs.

    sum of the row's edges + unselected + bias == pre_activation, in units of the target's pre-activation.

    Attributes:
        bias: What constants add to a row.
        unselected: Signed sum of the edges from active features that were not selected.
        unselected_mass: Sum of their |edges|.
        pre_activation: What the row sums to.
    """

    bias: Tensor
    unselected: Tensor
    unselected_mass: Tensor
    pre_activation: Tensor

    def __post_init__(self) -> None:
        require_tensors({}, {f"row balance: {field.name}": getattr(self, field.name) for field in fields(self)})
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.bias.ndim != 1:
            raise InputError(f"row balance: columns have shapes {shapes}; expected one (N,) for all")

    def residual(self, edges: Edges) -> Tensor:
        """(N,) float64: |sum + unselected + bias - pre| / (sum|edges| + unselected_mass + |bias| + |pre|); 0 for
        empty rows.
        """
        bias, unselected, pre = self.bias.double(), self.unselected.double(), self.pre_activation.double()
        gap = edges.row_sum(edges.weight) + unselected + bias - pre
        scale = edges.row_sum(edges.weight.abs()) + self.unselected_mass.double() + bias.abs() + pre.abs()
        return torch.where(scale == 0, torch.zeros_like(scale), gap.abs() / scale)

    def require(
        self, edges: Edges, nodes: NodeTable, dtype: str | None, max_residual: float | None = None, remedy: str = ""
    ) -> None:
        """Raise NumericalError, which names the worst row, if a residual is above what is promised for the model's dtype
        and that of the edges, or above `max_residual`, if that is larger. A residual that is no number is never let through.
        """
        promised = promised_residual(dtype, edges.weight.dtype)
        allowed = promised if max_residual is None else max(promised, max_residual)
        residual = self.residual(edges)
        broken = ~(residual <= allowed)
        if not bool(broken.any()):
            return
        node = int(torch.where(residual.isnan(), torch.inf, residual).argmax())
        kind = KIND_NAMES[NodeKind(int(nodes.kind[node]))]
        name = nodes.ids(torch.tensor([node], device=nodes.kind.device))[0]
        raise NumericalError(
            f"the sum rule does not hold: what the row of {kind} {name} (layer {int(nodes.layer[node])}, position "
            f"{int(nodes.position[node])}) adds up to misses its pre-activation {float(self.pre_activation[node]):.4g} by "
            f"{float(residual[node]):.1e} of its terms; {'at most' if allowed > promised else 'promised is at most'} "
            f"{allowed:.0e}{'' if allowed > promised else f' for a model in {dtype or edges.weight.dtype}'}. "
            f"{int(broken.sum())} of {int((edges.row_ptr.diff() > 0).sum())} rows are above. {remedy}".rstrip()
        )

    def to(self, device: str | torch.device) -> RowBalance:
        return RowBalance(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass
class Reconstruction:
    """The transcoder on this prompt, a layer at a time: nmse (L,) of its output, l0 (L,) mean active features a
    position.
    """

    nmse: Tensor
    l0: Tensor

    def __post_init__(self) -> None:
        require_tensors({}, {"reconstruction: nmse": self.nmse, "reconstruction: l0": self.l0})
        if self.nmse.shape != self.l0.shape or self.nmse.ndim != 1:
            raise InputError(
                f"reconstruction: nmse {tuple(self.nmse.shape)} and l0 {tuple(self.l0.shape)} must both be (L,)"
            )

    @property
    def warning(self) -> str | None:
        """What to tell of layers with an NMSE above 1: the mean output, or none at all, would be a better reconstruction."""
        poor = [(layer, value) for layer, value in enumerate(self.nmse.tolist()) if value > 1]
        if not poor:
            return None
        named = ", ".join(f"{layer} ({value:.3g})" for layer, value in poor[:_MOST_NAMED])
        more = f" and {len(poor) - _MOST_NAMED} more" if len(poor) > _MOST_NAMED else ""
        return (
            "on this prompt the transcoders rebuild the MLP output worse than its mean would: NMSE is above 1 in "
            f"layer{'s' if len(poor) > 1 else ''} {named}{more} of {len(self.nmse)}. The graph is exact, but its features do "
            "not explain this model here. Likely they are another dictionary (an autoencoder, another model's), stand at other "
            "hooks than those they were trained on, or are in another scale (normalisation that was not folded in); or the "
            "prompt is unlike all text that they were trained on"
        )

    def to(self, device: str | torch.device) -> Reconstruction:
        return Reconstruction(self.nmse.to(device), self.l0.to(device))
