"""An explanation of an alarm: what a probe's score is made of, and who carried it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.validation import GroupEffect
from circuit_tracer.probes.evaluate import plain
from circuit_tracer.probes.probe import Probe

WIDTH = 58


@dataclass(frozen=True)
class Carrier:
    """A node of the graph.

    Attributes:
        direct: Its edge to the probe, in units of the score.
        influence: The share of all that reaches the probe that comes through it, or from it, by whatever paths.
    """

    node: str
    what: str
    direct: float
    influence: float


@dataclass(frozen=True)
class Explanation:
    """Why a probe says what it says of a text.

    Attributes:
        position: Of the token whose score it is; None: of the text as a whole.
        direct: What the score is made of by kind of source, which sum to it; "constants" has the probe's bias, "unselected"
            what features without a row of their own give.
        residual: The largest of any row of the graph.
        errors: Share of the influence that ends in error nodes.
        features: Those with the most influence.
        tokens: Those with the most influence.
        tests: The features taken out, each by itself and together; none if not asked for.
    """

    probe: Probe
    text: str
    position: int | None
    token: str | None
    score: float
    direct: dict[str, float]
    residual: float
    errors: float
    features: list[Carrier]
    tokens: list[Carrier]
    tests: list[GroupEffect]
    graph: Graph

    @property
    def fires(self) -> bool:
        """Whether the score is above the probe's threshold."""
        return self.score > self.probe.threshold

    def lines(self) -> list[str]:
        """For people."""
        return explanation_lines(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the graph."""
        found: dict[str, Any] = plain(self._described())
        return found

    def _described(self) -> dict[str, Any]:
        return {
            "probe": self.probe.name,
            "text": self.text,
            "position": self.position,
            "token": self.token,
            "score": self.score,
            "threshold": self.probe.threshold,
            "fires": self.fires,
            "direct": self.direct,
            "residual": self.residual,
            "errors": self.errors,
            "features": [vars(each) for each in self.features],
            "tokens": [vars(each) for each in self.tokens],
            "tests": [
                {"what": each.name, "predicted": each.predicted, "measured": each.measured} for each in self.tests
            ],
        }


def explanation_lines(found: Explanation) -> list[str]:
    """The account: what the score is made of, who carried it, what is not explained, and what taking nodes out did."""
    where = "the text as a whole" if found.position is None else f"{found.token!r}@{found.position}"
    said = "fires" if found.fires else "does not fire"
    made_of = [f"{value:+.3f} {kind}" for kind, value in found.direct.items() if value]
    lines = [
        f"probe       {found.probe.name}, at {where}",
        f"score       {found.score:.4g}, threshold {found.probe.threshold:.4g}: {said}",
        f"made of     {', '.join(made_of)}",
        f"sum rule    {sum(found.direct.values()):.6g} (largest residual of a row {found.residual:.1e})",
        f"errors      {found.errors:.1%} of the influence ends in error nodes: that much is not explained",
        "",
        *_carriers("features that carried it", found.features),
        "",
        *_carriers("tokens that it comes from", found.tokens),
    ]
    return [*lines, *_tests(found.tests, {each.node: each.what for each in found.features})]


def _carriers(title: str, found: Sequence[Carrier]) -> list[str]:
    head = f"{title:{WIDTH}}{'direct':>10}{'influence':>11}"
    return [head, *(f"  {_cut(each.what):{WIDTH - 2}}{each.direct:>+10.3f}{each.influence:>11.1%}" for each in found)]


def _tests(tests: Sequence[GroupEffect], words: dict[str, str]) -> list[str]:
    if not tests:
        return []
    names = ("edges", "frozen", "paths", "live")
    lines = ["", f"{'taken out: change of the score':{WIDTH}}" + "".join(f"{name:>10}" for name in names)]
    for each in tests:
        values = (each.predicted["edges"], each.measured["constrained"], each.predicted["paths"], each.measured["live"])
        shown = "".join(f"{'-':>10}" if value is None else f"{value:>+10.3f}" for value in values)
        lines.append(f"  {_cut(words.get(each.name, each.name)):{WIDTH - 2}}{shown}")
    random = tests[-1].random
    if random is not None:
        lines.append(
            f"  {f'{random.count} random sets of as many features, mean':{WIDTH - 2}}{'':>30}{random.change:>+10.3f}"
        )
    lines.append("edges and paths are predicted by the graph, frozen and live measured in the model")
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH - 4 else f"{text[: WIDTH - 5]}…"
