"""Why heads look where they look, as a graph keeps it: `circuit_tracer.attention.explain_score` makes it.

Plain values. Contributors are named as nodes are in files ({l}_{f}_{p}, {l}_-1_{p}, E_{token}_{p}), and so are those that are
no nodes of the graph, because they were not selected or are pruned. Constants are {l}_bias_{kind}_{p}, at the layer of the head
and the position of their side.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from circuit_tracer.errors import FileFormatError, InputError, shortened

SourceKind = Literal["feature", "error", "token", "bias"]
SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
BIAS_TEXTS = {
    "own": "biases of its own projection and norms",
    "position": "position embeddings",
    "decoder": "decoder biases",
    "left_out": "MLP outputs of left-out positions",
    "attention": "attention biases and shifts of norms below",
}


_ID = re.compile(r"E_\d{1,18}_\d{1,9}|\d{1,9}_(-1|\d{1,18}|bias_[a-z_]+)_\d{1,9}", re.ASCII)


def bias_id(layer: int, kind: str, position: int) -> str:
    """The name of a kind of constants."""
    return f"{layer}_bias_{kind}_{position}"


@dataclass(frozen=True)
class ScoreSide:
    """What the query's token, or the key's, contributes to a score, the other side as it is.

    parts: by kind of source (`SOURCE_KINDS`), which add up to the score. mass: the same of absolute values. top: the strongest,
    (id, weight).
    """

    parts: dict[SourceKind, float]
    mass: dict[SourceKind, float]
    top: list[tuple[str, float]]

    @property
    def shares(self) -> dict[SourceKind, float]:
        """Of the mass, by kind; empty where there is none."""
        whole = sum(self.mass.values())
        return {kind: mass / whole for kind, mass in self.mass.items()} if whole else {}


@dataclass(frozen=True)
class AttentionScore:
    """The score of (layer, head, query, key), or with `versus` (a key, or "rest") how far it is above that of others.

    label: for people, equal to that of an `AttentionTarget` of the same place. score: before the softmax; with versus the
    difference of logs of attention. log_attention: of the key. pattern: what the query gives to each position. pairs: the
    strongest (query's id, key's id, weight) of all pairs, which add up to the score; none where they were not asked for.
    residual: of the sums, relative to the mass.
    """

    layer: int
    head: int
    query: int
    key: int
    versus: int | Literal["rest"] | None
    label: str
    score: float
    log_attention: float
    pattern: list[float]
    query_side: ScoreSide
    key_side: ScoreSide
    pairs: list[tuple[str, str, float]]
    residual: float

    @property
    def place(self) -> tuple[int, int, int, int, int | Literal["rest"] | None]:
        """Which score it is."""
        return self.layer, self.head, self.query, self.key, self.versus

    @property
    def ids(self) -> list[str]:
        """All contributors that are named, each once."""
        sides = (source for side in (self.query_side, self.key_side) for source, _ in side.top)
        return list(dict.fromkeys([*sides, *(source for pair in self.pairs for source in pair[:2])]))

    def check(self, n_layers: int, n_pos: int) -> None:
        """Raise InputError unless it can be of a graph of that size."""
        places = {"layer": (self.layer, n_layers), "query": (self.query, n_pos), "key": (self.key, self.query + 1)}
        if isinstance(self.versus, int):
            places["versus"] = self.versus, self.query + 1
        for name, (value, limit) in places.items():
            if not 0 <= value < limit:
                raise InputError(f"attention score {self.label!r}: {name} is {value}; expected 0 to {limit - 1}")
        if isinstance(self.versus, str) and self.versus != "rest":
            raise InputError(
                f"attention score {self.label!r}: versus is {self.versus!r}; expected a position or 'rest'"
            )
        if unknown := [name for name in self.ids if not _ID.fullmatch(name) or int(name.rpartition("_")[2]) >= n_pos]:
            raise InputError(f"attention score {self.label!r}: {shortened(unknown[0])} is no source of {n_pos} tokens")
        if len(self.pattern) != n_pos:
            raise InputError(
                f"attention score {self.label!r}: a pattern of {len(self.pattern)} positions for {n_pos} tokens"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Any) -> AttentionScore:
        """Read back. Raises FileFormatError for anything that `to_dict` does not write."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(json.dumps(given, allow_nan=False), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FileFormatError(f"attention score: {place}: {first['msg']}. Explain the score again.") from error
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"attention score: {error}; expected plain JSON values") from error
