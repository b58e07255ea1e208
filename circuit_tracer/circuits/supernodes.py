"""Groups of a graph's nodes that do one thing together, and a graph's grouping as a whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.graph.graph import Graph

# What a group does: is a token of the prompt, reads the input, promotes an output, does both, stands for what the
# dictionary leaves out, or is an output.
Role = Literal["token", "detects", "says", "mixed", "error", "logit"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Supernode:
    """A group of nodes of a graph that do one thing together.

    Attributes:
        name: Such as "Texas" or "say Austin"; "" until it is named.
        role: What it does.
        members: Ids of nodes, in the graph's order, at least one.
    """

    name: str  # "Texas", "say Austin"; "" until it is named
    role: Role
    members: tuple[str, ...]  # ids of nodes (`Graph.node_ids`), in the graph's order, at least one

    def __post_init__(self) -> None:
        if not self.members:
            raise InputError(f"the group {self.name!r} has no members: a group is of at least one node")
        if self.role not in ROLES:
            raise InputError(f"{self.role!r} is not the role of a group: {', '.join(ROLES)}")
        if again := [node for node, times in Counter(self.members).items() if times > 1]:
            raise InputError(f"the group {self.called!r} has the node {again[0]!r} twice; name each member once")

    @property
    def called(self) -> str:
        """What messages call it: its name, or its first member."""
        return self.name or self.members[0]


def members_of(graph: Graph, group: Supernode) -> list[int]:
    """Numbers of its members in the graph. Raises InputError for one that the graph does not have."""
    return graph.nodes.numbers(group.members, f"the group {group.called!r}")


@dataclass(frozen=True)
class GroupingScore:
    """How well the groups of a grouping do one thing each, and how that was found; shares are of the total influence.

    Attributes:
        purity: Of what its members send, the part that goes where their group sends (1: members are alike; groups of one
            count as 1).
        compression: Groups over the nodes in them.
        measured: Whether the effects of ablating groups at once in the model decided on the cut (False: the graph's own
            linear map did).
        calibration: Measured over predicted effects of the groups, fitted through zero; None where none were measured.
    """

    purity: float
    compression: float
    measured: bool = False
    calibration: float | None = None


@dataclass(frozen=True)
class Grouping:
    """Disjoint groups of a pruned graph's nodes, in the graph's order; nodes in none stand alone.

    Attributes:
        supernodes: The groups.
        settings: Of `group_nodes`: how it was made.
        score: How well they do one thing each; None: made by hand.
    """

    supernodes: tuple[Supernode, ...]
    settings: Mapping[str, str | float | int | None] = field(default_factory=dict)  # of `group_nodes`: how it was made
    score: GroupingScore | None = None  # None: made by hand

    def __post_init__(self) -> None:
        seen: dict[str, Supernode] = {}
        for group in self.supernodes:
            for node in group.members:
                if node in seen:
                    raise InputError(
                        f"the node {node!r} is in two groups, {seen[node].called!r} and {group.called!r}: groups are disjoint"
                    )
                seen[node] = group

    def __iter__(self) -> Iterator[Supernode]:
        return iter(self.supernodes)

    def __len__(self) -> int:
        return len(self.supernodes)

    def named(self, names: Mapping[int, str]) -> "Grouping":
        """The same groups with other names; `names`: from places in `supernodes`."""
        return replace(
            self,
            supernodes=tuple(
                replace(group, name=names.get(place, group.name)) for place, group in enumerate(self.supernodes)
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return {
            "supernodes": [[group.name, group.role, list(group.members)] for group in self.supernodes],
            "settings": dict(self.settings),
            "score": None if self.score is None else asdict(self.score),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Grouping":
        """Raises FileFormatError for what is none."""
        try:
            groups = tuple(_supernode(*row) for row in values["supernodes"])
            score = None if values["score"] is None else GroupingScore(**values["score"])
            return cls(groups, dict(values["settings"]), score)
        except (LookupError, TypeError, ValueError, InputError) as error:
            raise FileFormatError(f"the graph's grouping cannot be read ({error}); group its nodes again") from error

    def to_viewer(self) -> list[list[str]]:
        """`[[name, id, id, ...], ...]`, as `qParams.supernodes` of the viewer and of Neuronpedia has groups: those of
        two nodes or more, and those that have a name."""
        return [[group.name, *group.members] for group in self.supernodes if len(group.members) > 1 or group.name]


def _supernode(name: Any, role: Any, members: Any) -> Supernode:
    if not isinstance(name, str) or not isinstance(members, list) or not all(isinstance(each, str) for each in members):
        raise TypeError(f"{shortened([name, role, members])} is no [name, role, [node id, ...]]")
    return Supernode(name, role, tuple(members))
