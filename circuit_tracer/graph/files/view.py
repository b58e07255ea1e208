"""What a person chose in a graph: pinned nodes, supernodes, labels; as a link to a viewer's page, and as a file keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.graph.files.node_ids import cantor_pair, cantor_unpair
from circuit_tracer.graph.files.read_json import typed_q_params

FeaturePlace = tuple[int, int, int]  # layer, position, index; layer -1 for tokens, index then being the token's id
_PARAMETERS = ("pinnedIds", "supernodes", "clickedId", "clerps", "pruningThreshold")


@dataclass(frozen=True)
class View:
    """pinned: node ids. supernodes: (name, member ids) each; members are pinned too. labels: texts by node id. clicked: a node
    id or "". pruning: the share of the influence that is shown, or None.
    """

    pinned: tuple[str, ...] = ()
    supernodes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    clicked: str = ""
    pruning: float | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Ids of all nodes pinned by themselves or in a supernode, each once."""
        return tuple(dict.fromkeys((*self.pinned, *(name for _, members in self.supernodes for name in members))))

    @classmethod
    def of_features(cls, supernodes: Mapping[str, Iterable[FeaturePlace]], pinned: Iterable[FeaturePlace] = ()) -> View:
        """Of features as ``decode_url_features`` gives them: (layer, position, index)."""
        groups = tuple((name, tuple(map(_node_id, members))) for name, members in supernodes.items())
        return cls(tuple(map(_node_id, pinned)), groups)

    @classmethod
    def of_grouping(cls, grouping: Mapping[str, Any]) -> View:
        """Of the groups that a graph keeps (`Graph.grouping`): its pins, and of the groups whose members are pinned those that
        have a name or several members. Raises FileFormatError for what is none.
        """
        try:
            groups = [_group(name, members) for name, _, members in grouping["supernodes"]]
            pinned = _texts(grouping["pinned"], "the pinned nodes")
            shown = [(name, members) for name, members in groups if members[0] in {*pinned}]
            return cls(pinned, tuple((name, members) for name, members in shown if name or len(members) > 1))
        except (LookupError, TypeError, ValueError) as error:
            raise FileFormatError(f"the graph's groups cannot be read ({error}); group its nodes again") from error

    @classmethod
    def from_url(cls, url: str) -> View:
        """That of a link to any viewer's page, whether its parameters stand behind ? or #.

        What our page alone knows is left out: "none" for a selection that was cleared, and the difference of two outputs.
        Raises InputError for parameters that cannot be read.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query or parts.fragment)
        given = {name: query[name][0] for name in _PARAMETERS if name in query}
        groups = _parsed("supernodes", given.get("supernodes", "[]"))
        labels = _parsed("clerps", given.get("clerps", "[]"))
        paired = "neuronpedia" in (parts.hostname or "")
        try:
            return cls(
                tuple(filter(_of_file, unquote(given.get("pinnedIds", "")).split(","))),
                tuple((str(name), tuple(filter(_of_file, map(str, members)))) for name, *members in groups),
                {
                    _plain_id(str(name)) if paired else str(name): str(text)
                    for name, text in labels
                    if _of_file(str(name))
                },
                next(filter(_of_file, [given.get("clickedId", "")]), ""),
                float(given["pruningThreshold"]) if "pruningThreshold" in given else None,
            )
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the address does not hold a view: supernodes are [[name, node id, ...], ...], clerps [[node id, text], ...] "
                f"and pruningThreshold a number ({error})"
            ) from error

    @classmethod
    def of_link(cls, url: str) -> View:
        """``from_url`` of what was given as a link with a view: InputError also for one that holds none."""
        parts = urlsplit(url)
        if not set(parse_qs(parts.query or parts.fragment)) & set(_PARAMETERS):
            raise InputError(
                f"{url[:80]!r} is no link to a viewer's page with something chosen in it; it holds none of "
                f"{', '.join(_PARAMETERS)}. Copy the address from the page"
            )
        return cls.from_url(url)

    def to_url(self, page: str) -> str:
        """A link to ``page`` (an address; its other parameters stay) that shows this view."""
        parts = urlsplit(page)
        paired = "neuronpedia" in (parts.hostname or "")
        labels = [[_paired_id(name) if paired else name, text] for name, text in self.labels.items()]
        wanted = {
            "pinnedIds": ",".join(self.nodes),
            "supernodes": _dump(self._groups()) if self.supernodes else "",
            "clickedId": self.clicked,
            "clerps": _dump(labels) if labels else "",
            "pruningThreshold": "" if self.pruning is None else f"{self.pruning:g}",
        }
        kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in _PARAMETERS]
        query = urlencode(kept + [(name, value) for name, value in wanted.items() if value])
        return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))

    @classmethod
    def from_q_params(cls, q_params: Mapping[str, Any]) -> View:
        """That of a graph file, from what any viewer writes. Raises FileFormatError for what is none."""
        typed = typed_q_params(dict(q_params))
        labels, pruning = q_params.get("clerps") or [], q_params.get("pruningThreshold")
        try:
            return cls(
                tuple(typed["pinnedIds"]),
                tuple((name, tuple(members)) for name, *members in typed["supernodes"]),
                {str(name): str(text) for name, text in _listed(labels)},
                typed["clickedId"],
                None if pruning is None else float(pruning),
            )
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"qParams do not hold a view: {error}") from error

    def q_params(self) -> dict[str, Any]:
        """As a graph file keeps it, with strict types; labels are in the nodes there."""
        pinned = list(self.nodes)
        return {
            "pinnedIds": pinned,
            "supernodes": self._groups(),
            "linkType": "both",
            "clickedId": self.clicked,
            "sg_pos": "",
        }

    def _groups(self) -> list[list[str]]:
        return [[name, *members] for name, members in self.supernodes]


def _group(name: Any, members: Any) -> tuple[str, tuple[str, ...]]:
    """Raises TypeError for what is no group of a graph: a name, "" if it has none, and at least one node."""
    if not isinstance(name, str):
        raise TypeError(f"a group's name is a text, not {shortened(name)}")
    ids = _texts(members, f"the members of {shortened(name)}")
    if not ids:
        raise TypeError(f"the group {shortened(name)} has no members")
    return name, ids


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise TypeError(f"{what} are a list of node ids, not {shortened(values)}")
    return tuple(values)


def _of_file(name: str) -> bool:
    """Whether a name in an address is that of a node."""
    return name not in ("", "none") and not name.startswith("difference_")


def _node_id(place: FeaturePlace) -> str:
    layer, position, index = place
    return f"{'E' if layer < 0 else layer}_{index}_{position}"


def _paired_id(name: str) -> str:
    """{layer}_{index}_{position} as Neuronpedia names it in labels: with the paired number for the index."""
    layer, _, rest = name.partition("_")
    index, _, position = rest.rpartition("_")
    return (
        f"{layer}_{cantor_pair(int(layer), int(index))}_{position}" if layer.isdecimal() and index.isdecimal() else name
    )


def _plain_id(name: str) -> str:
    layer, _, rest = name.partition("_")
    number, _, position = rest.rpartition("_")
    if not (layer.isdecimal() and number.isdecimal()):
        return name
    first, index = cantor_unpair(int(number))
    return f"{layer}_{index}_{position}" if first == int(layer) else name


def _parsed(name: str, text: str) -> Any:
    """JSON of a parameter; links copied out of some notebooks are encoded twice."""
    for candidate in (text, unquote(text)):
        try:
            value = parse_json(candidate, name)
        except FileFormatError:
            continue
        if isinstance(value, list):
            return value
    raise InputError(f"{name} in the address is no JSON list: {text[:80]!r}")


def _listed(labels: Any) -> Any:
    return parse_json(labels, "qParams.clerps", halves=True) if isinstance(labels, str) else labels


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
