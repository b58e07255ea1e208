"""An explanation of an alarm, for people who read a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuit_tracer.graph.validation import GroupEffect

if TYPE_CHECKING:
    from circuit_tracer.probes.explain import Carrier, Explanation

WIDTH = 58


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
