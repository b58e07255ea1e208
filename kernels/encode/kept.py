"""What is kept of encoder weights between calls: the norms of their rows, and from some tokens on a coarse copy.

Letters: D width, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.kernels.encode import coarse
from circuit_tracer.kernels.encode.coarse import Coarse

AT_ONCE = 256  # tokens that pay for a coarse copy by themselves
IN_ALL = 64  # tokens, of all calls, that pay for one that is kept
LEAST_WEIGHTS = 2**16  # with fewer, what is saved is less than what it takes to begin


def norms(weight_FD: Tensor) -> Tensor:
    """(F,) float32."""
    return torch.linalg.vector_norm(weight_FD, dim=1, dtype=torch.float32)


class Kept:
    """Of one matrix at a time, for as long as it is the same tensor, unchanged: whoever gives another gets what belongs to that.

    A change in place is seen by torch's count of changes; one behind it, through ``.data`` or numpy, is not: call `drop`. The
    coarse copy takes half of what the weights take in float32.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._known: tuple[object, ...] = ()
        self._norm_F: Tensor | None = None
        self._coarse: Coarse | None = None
        self._tokens = 0

    def drop(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    @property
    def n_bytes(self) -> int:
        """What it holds."""
        coarse_bytes = 0 if self._coarse is None else self._coarse.weight_FC.nbytes
        return coarse_bytes + (0 if self._norm_F is None else self._norm_F.nbytes)

    def of(self, weight_FD: Tensor, n_rows: int) -> tuple[Tensor, Coarse | None]:
        """Norms, and the coarse copy where it is there or pays for ``n_rows`` tokens more."""
        if weight_FD.is_inference():  # torch does not count their changes
            return made(weight_FD, n_rows)
        known = (weight_FD.data_ptr(), weight_FD._version, weight_FD.dtype, weight_FD.shape, weight_FD.stride())
        if self._norm_F is None or known != self._known:
            self.drop()
            # the tensor itself too, so that no other one can come to lie where it lies
            self._weight, self._known, self._norm_F = weight_FD, known, norms(weight_FD)
        self._tokens += n_rows
        if self._coarse is None and self._tokens >= IN_ALL and _is_large(weight_FD) and coarse.pays():
            self._coarse = Coarse.of(weight_FD, self._norm_F)
        return self._norm_F, self._coarse


def made(weight_FD: Tensor, n_rows: int) -> tuple[Tensor, Coarse | None]:
    """The same for one call."""
    norm_F = norms(weight_FD)
    pays = n_rows >= AT_ONCE and _is_large(weight_FD) and coarse.pays()
    return norm_F, Coarse.of(weight_FD, norm_F) if pays else None


def _is_large(weight_FD: Tensor) -> bool:
    return weight_FD.numel() >= LEAST_WEIGHTS
