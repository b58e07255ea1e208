"""What labels of features say, in parts that can be counted: "mixed: say Austin, Texas (places)" -> say Austin, Texas."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COVERED = 0.5  # share of a group's labels, by influence, that must name a concept for it to name the group by itself
AHEAD = 0.1  # of that share: by how much more labels must name it than the next
NAMED = 2  # concepts that name a group where none has that much
LONGEST = 40  # characters of a name

_MIXED = "mixed: "
_SAYS = re.compile(
    r"(?:say|says|saying|predict|predicts|promote|promotes|output|outputs) (?:the word |the token )?(.+)", re.I
)
_DETECTS = re.compile(r"(?:detects?|mentions? of|references? to|occurrences? of) (.+)", re.I)
_QUALIFIED = re.compile(r"(.+?)\s*\([^()]*\)")


@dataclass(frozen=True)
class Concept:
    """One thing that a label names. says: it is what the feature makes the model say, not what it reads."""

    text: str
    says: bool = False

    def __str__(self) -> str:
        return f"say {self.text}" if self.says else self.text


def concepts(label: str) -> list[Concept]:
    """Those of a label, without quotes around them and without what stands in parentheses behind them; of what to say, without
    examples: "say a capital: Austin, Boise" is "say a capital".
    """
    return [_concept(part) for part in parts(label)]


def parts(label: str) -> list[str]:
    """The texts of a label that each name one thing."""
    given = label.removeprefix(_MIXED).split(", ") if is_of_several(label) else [label]
    return [part for part in map(str.strip, given) if part]


def is_of_several(label: str) -> bool:
    """Whether a label names several things."""
    return label.startswith(_MIXED)


def tally(labels: Iterable[tuple[str, float]]) -> dict[Concept, float]:
    """How much weight of labels names each concept, most first: what labels of several concepts have in common counts most,
    and of one label what most of its parts name.
    """
    found: defaultdict[Concept, float] = defaultdict(float)
    spelled: dict[tuple[str, bool], Concept] = {}  # names of one concept differ in capitals
    for label, weight in labels:
        named = Counter(spelled.setdefault((each.text.casefold(), each.says), each) for each in concepts(label))
        for each, times in named.items():
            found[each] += weight * times / max(named.values())
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], str(pair[0]))))


def leading(weights: Mapping[Concept, float], total: float) -> str | None:
    """The concept that alone is named by ``COVERED`` of the total weight, and more than any other by ``AHEAD``."""
    ranked = list(weights)
    if not ranked or weights[ranked[0]] < COVERED * total or total <= 0:
        return None
    second = weights[ranked[1]] if len(ranked) > 1 else 0.0
    return str(ranked[0]) if weights[ranked[0]] - second >= AHEAD * total else None


def is_kind(name: str) -> bool:
    """Whether what is said is any of a kind: "say a capital", not "say Austin"."""
    return name.startswith(("say a ", "say an ", "say the "))


def several(weights: Mapping[Concept, float], total: float) -> str | None:
    """The first concepts of a group that does several things; "…" says that there are more of them."""
    named = list(weights)[:NAMED]
    if not named:
        return None
    more = any(weight > 0 and weight >= (1 - COVERED) * total for weight in list(weights.values())[NAMED:])
    return ", ".join(map(str, named)) + (", …" if more else "")


def shortened_name(name: str) -> str:
    """At most ``LONGEST`` characters, cut between words."""
    if len(name) <= LONGEST:
        return name
    return name[:LONGEST].rsplit(" ", 1)[0].rstrip(",;: ") + " …"


def _concept(part: str) -> Concept:
    if says := _SAYS.fullmatch(part):
        return Concept(_plain(says[1].partition(": ")[0]), says=True)
    detects = _DETECTS.fullmatch(part)
    return Concept(_plain(detects[1] if detects else part))


def _plain(text: str) -> str:
    qualified = _QUALIFIED.fullmatch(text)
    text = (qualified[1] if qualified else text).strip()
    return text[1:-1].strip() or text if len(text) > 2 and text[0] + text[-1] in ('""', "“”", "''") else text
