"""The named meanings of an intervention: what reacts to a change and what is held still.

| kind | MLP outputs of the layers in the range | a change is measured from | outside of the range |
|---|---|---|---|
| constrained | as on the clean prompt, plus what the edited features write | the clean activation | real MLPs |
| iterative | as on the clean prompt, plus what every feature writes that changed | the clean activation | real MLPs |
| direct | real MLPs, plus what the edited features write | the activation there and then | (no range) |

*constrained* is the paper's constrained patching: in the range nothing but the edited features moves. *iterative* is its
iterative patching: in the range the MLPs are the transcoder plus its error on the clean prompt, features are encoded anew in
every layer, and errors cascade. *direct* is circuit-tracer's `feature_intervention` without `constrained_layers`. In the
first two, features write to layers of the range only; a skip connection passes on what its input changed by. Attention
patterns and norm scales are those of the clean prompt where frozen; values move on through frozen patterns all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from circuit_tracer.arguments import typed, whole
from circuit_tracer.errors import InputError

Kind = Literal["direct", "constrained", "iterative"]


@typed
@dataclass(frozen=True)
class Semantics:
    """One meaning in full.

    Attributes:
        kind: "direct": real MLPs, plus what the edited features write. "constrained": in the range nothing but the
            edited features moves. "iterative": in the range MLPs are the dictionary plus its error on the clean prompt,
            and features are encoded anew in every layer.
        layers: The range, None for all; direct has none.
        freeze_attention: Attention patterns as on the clean prompt.
        freeze_norms: None for circuit-tracer's rule: frozen exactly when all layers are constrained, which makes the
            model the linear network whose edges the attribution graph holds.
    """

    kind: Kind = "direct"
    layers: Iterable[int] | None = None
    freeze_attention: bool = True
    freeze_norms: bool | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted({whole(layer, "a layer") for layer in self.layers})))
            if self.kind == "direct":
                raise InputError(
                    "direct semantics have no range of layers; use constrained or iterative, or leave layers out"
                )
            if not self.layers:
                raise InputError(f"{self.kind} semantics over no layer; give at least one, or None for all")

    def held(self, n_layers: int) -> list[int]:
        """Layers of the range; none for direct. Raises InputError for a layer that does not exist."""
        if self.kind == "direct":
            return []
        layers = list(range(n_layers)) if self.layers is None else list(self.layers)
        if layers[0] < 0 or layers[-1] >= n_layers:
            raise InputError(f"{self.kind} layers reach from {layers[0]} to {layers[-1]}; layers: 0 to {n_layers - 1}")
        return layers

    def norms_frozen(self, n_layers: int) -> bool:
        """Whether norm scales are those of the clean prompt."""
        if self.freeze_norms is not None:
            return self.freeze_norms
        return self.kind == "constrained" and len(self.held(n_layers)) == n_layers

    def __str__(self) -> str:
        layers = "" if self.layers is None else f" over layers {min(self.layers)} to {max(self.layers)}"
        return f"{self.kind}{layers}, attention {'frozen' if self.freeze_attention else 'live'}"


def semantics_of(given: Semantics | Kind) -> Semantics:
    """A name stands for its defaults."""
    return given if isinstance(given, Semantics) else Semantics(given)
