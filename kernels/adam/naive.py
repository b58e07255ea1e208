"""Specification of `adam_`: the formulas, number by number. Rounding is not part of it: in the mean it changes nothing."""

from __future__ import annotations

import math
from itertools import product

from torch import Tensor

from circuit_tracer.kernels.adam import Rows, Update


def adam(rows: Rows, grad_RC: Tensor, update: Update) -> Rows:
    """New rows, in the format of ``grad_RC``; moments are not packed. Shapes as in `circuit_tracer.kernels.adam.adam_`."""
    weight, first, second = (each.to(grad_RC.dtype).clone() for each in (rows.weight, rows.first, rows.second))
    for place in product(*map(range, grad_RC.shape)):
        g = float(grad_RC[place])
        first[place] = m = update.beta1 * float(first[place]) + (1 - update.beta1) * g
        second[place] = v = update.beta2 * float(second[place]) + (1 - update.beta2) * g**2
        m, v = m / (1 - update.beta1 ** (update.step + 1)), v / (1 - update.beta2 ** (update.step + 1))
        weight[place] -= update.rate * m / (math.sqrt(v) + update.eps)
    return Rows(weight, first, second, norm=None if rows.norm is None else weight.square().sum(1).sqrt())
