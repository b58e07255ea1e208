"""The processes of a training run share its features (training/README.md §10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from circuit_tracer.errors import InputError
from circuit_tracer.ranks import Ranks


@dataclass(frozen=True)
class FeatureRanks(Ranks):
    """This process among ``world``, and the features it owns."""

    advice: ClassVar[str] = (
        "The last complete checkpoint stays: look for the first error among the processes, then start again with --resume, "
        "on any number of ranks."
    )

    def share(self, n_features: int) -> slice:
        """The features this rank owns, of every layer. Raises InputError when they cannot be shared out evenly."""
        if n_features % self.world:
            raise InputError(
                f"dictionary.features is {n_features}, which {self.world} ranks cannot share evenly; "
                f"take {n_features // self.world * self.world or self.world} or another number of ranks."
            )
        size = n_features // self.world
        return slice(self.rank * size, (self.rank + 1) * size)
