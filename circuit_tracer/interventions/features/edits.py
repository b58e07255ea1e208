"""What to do with which features, where: set, scale, ablate, add, or take the value from another prompt.

    edits = [ablate(Supernode("Texas", [(1, 6, 30), (2, 6, 77)])), set_to((1, 45), 8.0, at=-1)]

A feature is (layer, index), or (layer, position, index) in circuit-tracer's order, as in `graph.active_features`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from circuit_tracer.arguments import number
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.models.tokenization import Prompt

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph

How = Literal["set", "scale", "add", "take"]
Positions = int | slice | Sequence[int] | Literal["all", "prompt", "generated"] | None


class FeatureAt(NamedTuple):
    """A feature, at a position of the prompt or (None) wherever the edit says.

    Attributes:
        layer: Of the feature.
        position: Of the prompt; None: wherever the edit says.
        feature_idx: Of the feature in its layer.
    """

    layer: int
    position: int | None
    feature_idx: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.feature_idx}"


@dataclass(frozen=True)
class Supernode:
    """Features that a person takes for one concept, under a name."""

    name: str
    features: tuple[FeatureAt, ...]

    def __init__(self, name: str, features: Features) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "features", features_of(features))
        if not self.features:
            raise InputError(f"supernode {name!r} has no features; name at least one")

    @classmethod
    def of_nodes(cls, name: str, graph: Graph, nodes: Iterable[int]) -> Supernode:
        """Feature nodes of a graph, by number. Raises InputError for a node that is no feature."""
        return cls(name, nodes_of(graph, nodes))


Features = FeatureAt | Supernode | tuple[int, int] | tuple[int, "int | None", int] | Sequence[Any]


@dataclass(frozen=True)
class Edit:
    """One change of features, made by `set_to`, `scale`, `ablate`, `add` or `take_from`.

    Attributes:
        how: "set", "scale", "add" or "take".
        features: Which.
        amount: The value, factor or addend.
        at: Where: a position (negative: from the end), several, a slice, "prompt", "generated" (tokens to come), "all"
            (both), or None: each feature at its own position, everywhere if it has none. The named places leave out the
            positions that attribution leaves out (0; the chat prefix of Gemma 3); a number or slice can reach them.
        source: Of "take": the other prompt.
        source_at: Of "take": the position there; None: the same as here.
        name: Of the supernode, if it is one.
    """

    how: How
    features: tuple[FeatureAt, ...]
    amount: float = 0.0
    at: Positions = None
    source: Prompt | None = None
    source_at: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.features:
            raise InputError("an edit names no feature; give (layer, index), (layer, position, index) or a Supernode")
        object.__setattr__(self, "amount", number(self.amount, "an edit's amount"))
        object.__setattr__(self, "at", plain_place(self.at))
        if self.source_at is not None:
            object.__setattr__(self, "source_at", _position(self.source_at))

    def __str__(self) -> str:
        names = [f"{each}{place_text(each.position if self.at is None else self.at)}" for each in self.features[:3]]
        listed = ", ".join(names) + (", ..." if len(self.features) > 3 else "")
        what = listed if self.name is None else f"{self.name}{place_text(self.at)}"
        words = {
            "set": f"set to {self.amount:g}",
            "scale": f"scaled by {self.amount:g}",
            "add": f"plus {self.amount:g}",
        }
        return f"{what} {words.get(self.how, 'taken from another prompt')}"


def set_to(features: Features, value: float, at: Positions = None) -> Edit:
    """The features' activations become `value`.

    Args:
        features: A feature, several, or a `Supernode`.
        value: The new activation, in the dictionary's own units.
        at: Where; None: each feature's own position. See `Edit`.

    Returns:
        The edit.
    """
    return Edit("set", features_of(features), value, at, name=_name(features))


def scale(features: Features, factor: float, at: Positions = None) -> Edit:
    """Each activation becomes `factor` times what it is on the clean prompt; on generated tokens, what it would be there.

    -1 is the usual way to suppress. A feature that is inactive wherever the edit reaches cannot be scaled: 0 times anything
    is 0.

    Args:
        features: A feature, several, or a `Supernode`.
        factor: On the clean activation.
        at: Where; None: each feature's own position. See `Edit`.

    Returns:
        The edit.
    """
    return Edit("scale", features_of(features), factor, at, name=_name(features))


def ablate(features: Features, at: Positions = None) -> Edit:
    """The features' activations become 0; where they are 0 already, nothing changes.

    Args:
        features: A feature, several, or a `Supernode`.
        at: Where; None: each feature's own position. See `Edit`.

    Returns:
        The edit.

    Examples:
        >>> from circuit_tracer.interventions import FeatureAt, ablate
        >>> ablate([FeatureAt(0, 7, 78), FeatureAt(0, None, 14)]).how
        'set'
    """
    return set_to(features, 0.0, at)


def add(features: Features, amount: float, at: Positions = None) -> Edit:
    """`amount` is added to each activation of the clean prompt (on generated tokens: to what it would be there).

    Args:
        features: A feature, several, or a `Supernode`.
        amount: In the dictionary's own units.
        at: Where; None: each feature's own position. See `Edit`.

    Returns:
        The edit.
    """
    return Edit("add", features_of(features), amount, at, name=_name(features))


def take_from(features: Features, source: Prompt, at: Positions = None, source_at: int | None = None) -> Edit:
    """The features get the activations that they have on another prompt, at `source_at`, or (None) at the same position.

    Args:
        features: A feature, several, or a `Supernode`.
        source: The other prompt: text or token ids.
        at: Where; None: each feature's own position. See `Edit`.
        source_at: Position there; None: the same as here.

    Returns:
        The edit.
    """
    return Edit("take", features_of(features), 0.0, at, source, source_at, _name(features))


def nodes_of(graph: Graph, nodes: Iterable[int]) -> tuple[FeatureAt, ...]:
    """Feature nodes of a graph, by number.

    Args:
        graph: The attribution graph.
        nodes: Numbers of feature nodes.

    Returns:
        A place (layer, position, feature) each, in order.

    Raises:
        InputError: For a node that is no feature.
    """
    count, found = graph.nodes.layout.n_features, []
    for node in nodes:
        if not 0 <= int(node) < count:
            raise InputError(f"node {node} is no feature of this graph: its features are nodes 0 to {count - 1}")
        layer, position, index = graph.active_features[graph.selected_features[int(node)]].tolist()
        found.append(FeatureAt(layer, position, index))
    return tuple(found)


def features_of(features: Features) -> tuple[FeatureAt, ...]:
    """Any accepted form as a flat tuple; InputError for another."""
    return tuple(_flat(features))


def _flat(features: Any) -> Iterator[FeatureAt]:
    if isinstance(features, Supernode):
        yield from features.features
    elif hasattr(features, "tolist"):
        yield from _flat(features.tolist())
    elif isinstance(features, Sequence) and not isinstance(features, str):
        if len(features) in (2, 3) and all(_whole(part) or part is None for part in features):
            yield _feature(features)
        else:
            for each in features:
                yield from _flat(each)
    else:
        raise InputError(
            f"{shortened(features)} is no feature; give (layer, index), (layer, position, index) or a Supernode"
        )


def _feature(parts: Sequence[Any]) -> FeatureAt:
    position = parts[1] if len(parts) == 3 else None
    if parts[0] is None or parts[-1] is None:
        raise InputError(f"{tuple(parts)!r} is no feature: layer and index must be numbers")
    return FeatureAt(int(parts[0]), None if position is None else int(position), int(parts[-1]))


def plain_place(at: Any) -> int | slice | tuple[int, ...] | str | None:
    """Where, in plain numbers: numpy's and tensors of any shape are welcome too. Raises InputError for what is no place."""
    if isinstance(at, str) and at not in ("all", "prompt", "generated"):
        raise InputError(f"an edit's place is {at!r}; use positions, a slice, 'all', 'prompt' or 'generated'")
    if at is None or isinstance(at, str):
        return at
    if isinstance(at, slice):
        if at.step not in (None, 1):
            raise InputError(f"an edit's slice has step {at.step}; list the positions instead")
        return slice(*(None if end is None else _position(end) for end in (at.start, at.stop)))
    at = at.tolist() if hasattr(at, "tolist") else at
    return tuple(map(_position, at)) if isinstance(at, Iterable) else _position(at)


def place_text(at: Positions) -> str:
    """A place as the command line writes it behind a feature or head: @6, @2:5, @all; nothing for None."""
    if at is None:
        return ""
    if isinstance(at, slice):
        return "@" + ":".join("" if end is None else str(end) for end in (at.start, at.stop))
    return f"@{at}" if isinstance(at, int | str) else f"@{list(at)}"


def _position(place: Any) -> int:
    if not _whole(place):
        raise InputError(
            f"{shortened(place)} is no position of an edit; give a whole number, several, a slice or a place's name"
        )
    return operator.index(place)


def _whole(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except (TypeError, RuntimeError, ValueError):
        return False


def _name(features: Any) -> str | None:
    return features.name if isinstance(features, Supernode) else None
