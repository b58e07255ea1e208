"""The score of one head, one query and one key, explained from both sides.

Letters: P positions, S + B columns (`ScoreSources`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attention.pairs import ScorePairs
from circuit_tracer.attention.score_sources import BIASES, KINDS, ScoreSources
from circuit_tracer.graph.attention_scores import SOURCE_KINDS, AttentionScore, ScoreSide, SourceKind


class Contributor(NamedTuple):
    """A source and what it contributes.

    Attributes:
        node: Its number in the graph, None for what is no node there.
    """

    id: str
    kind: SourceKind
    weight: float
    node: int | None


@dataclass(frozen=True)
class Marginals:
    """What every source contributes to the score through one side, the other side as it is; they add up to the score.

    Attributes:
        values: (S + B,).
        position: Of the side's constants: the query or the key.
        selected: (N_s,) which active features are nodes.
    """

    sources: ScoreSources
    values: Tensor
    position: int
    selected: Tensor

    @property
    def biases(self) -> dict[str, float]:
        """By kind of constants."""
        return dict(zip(BIASES, self.values[self.sources.n_nodes :].tolist(), strict=True))

    @cached_property
    def parts(self) -> dict[SourceKind, float]:
        """Sums by kind of source."""
        return self._by_kind(self.values)

    @cached_property
    def mass(self) -> dict[SourceKind, float]:
        """Sums of absolute values by kind of source."""
        return self._by_kind(self.values.abs())

    @typed
    def of(self, source: int | str) -> float:
        """One source, by column, id, or name of a kind of constants."""
        return float(self.values[self.sources.column(source, self.position)])

    @typed
    def strongest(self, n: int = 10) -> list[Contributor]:
        """The n largest by absolute value, strongest first, without those of none."""
        order = self.values.abs().argsort(descending=True, stable=True)[: max(0, n)]
        order = order[self.values[order] != 0]
        kinds = [KINDS[kind] for kind in self.sources.kinds(order).tolist()]
        rows = zip(
            self.sources.ids(order, self.position), kinds, self.values[order].tolist(), self._nodes(order), strict=True
        )
        return [Contributor(*row) for row in rows]  # type: ignore[arg-type]

    @typed
    def kept(self, n: int) -> ScoreSide:
        """As a graph keeps it."""
        return ScoreSide(self.parts, self.mass, [(each.id, each.weight) for each in self.strongest(n)])

    def _by_kind(self, values: Tensor) -> dict[SourceKind, float]:
        sums = values.new_zeros(len(KINDS) + 1, dtype=torch.float64)
        sums.index_add_(0, self.sources.kinds(torch.arange(len(values))), values.double())
        numbers = {name: number for number, name in KINDS.items()}
        return {kind: float(sums[numbers[kind]]) for kind in SOURCE_KINDS}

    def _nodes(self, columns: Tensor) -> list[int | None]:
        n_features, n_nodes = self.sources.nodes.layout.n_features, self.sources.n_nodes
        place = torch.searchsorted(self.selected, columns)
        found: list[int | None] = []
        for column, at in zip(columns.tolist(), place.tolist(), strict=True):
            if column >= n_features:
                found.append(column - n_features + len(self.selected) if column < n_nodes else None)
            else:
                found.append(at if at < len(self.selected) and int(self.selected[at]) == column else None)
        return found


@dataclass(frozen=True)
class ScoreExplanation:
    """Why a head looks at a key.

    Attributes:
        score: Before the softmax, after a cap; with versus (another key, or "rest") the difference, which is that of the
            logs of attention.
        log_attention: Of the key.
        pattern: (P,) what the query gives to each position.
        query_side: marginals.
        key_side: marginals.
        pairs: Of both sides, None if they were not asked for.
        residual: By how much the marginals of a side miss the score, relative to the mass of the products that these are
            sums of.
    """

    layer: int
    head: int
    query: int
    key: int
    versus: int | Literal["rest"] | None
    label: str
    score: float
    log_attention: float
    pattern: Tensor
    query_side: Marginals
    key_side: Marginals
    pairs: ScorePairs | None
    residual: float

    @typed
    def strongest(self, n: int = 10) -> dict[str, list[Contributor]]:
        """The n largest contributors of each side."""
        return {"query": self.query_side.strongest(n), "key": self.key_side.strongest(n)}

    @typed
    def qk_only(self, n: int = 10) -> list[Contributor]:
        """Of these, features that are no nodes of the graph, each once."""
        both = (each for side in self.strongest(n).values() for each in side)
        return list({each.id: each for each in both if each.node is None and each.kind == "feature"}.values())

    @typed
    def kept(self, contributors: int = 10, pairs: int = 10) -> AttentionScore:
        """As a graph keeps it: `graph.scores.append(found.kept())`."""
        return AttentionScore(
            layer=self.layer,
            head=self.head,
            query=self.query,
            key=self.key,
            versus=self.versus,
            label=self.label,
            score=self.score,
            log_attention=self.log_attention,
            pattern=self.pattern.tolist(),
            query_side=self.query_side.kept(contributors),
            key_side=self.key_side.kept(contributors),
            pairs=[] if self.pairs is None else [(pair.query, pair.key, pair.weight) for pair in self.pairs.top(pairs)],
            residual=self.residual,
        )

    @typed
    def to_dict(self, contributors: int = 10, pairs: int = 10) -> dict[str, Any]:
        """Plain values for JSON, which `AttentionScore.from_dict` reads."""
        return self.kept(contributors, pairs).to_dict()
