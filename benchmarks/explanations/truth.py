"""What is true of a prompt of the embedded world, and what names and labels say of it.

A label of the demo names one thing (an entity, a relation, a word, something to say) or begins with "mixed". Names of groups
are made of such labels (`circuits/naming`); they are read back here.
"""

from __future__ import annotations

import re

MIXED = "mixed"

Concept = tuple[bool, str]  # (is it of what to say, what)

_WHERE = re.compile(r"( at (“.*”|\d[\d, ]*))?( L\d+(–\d+)?)?( #\d+)?$")  # what tells groups of one name apart
_QUALIFIED = re.compile(r"(.+?) \((name|cities|capital|places|question about it)\)")
_SAY_RELATION = re.compile(r"an? (\w+)|the (\w+) of an? (?:state|country)")


def concept_of(label: str | None) -> Concept | None:
    """The one thing that a label names; None for a feature of several ("mixed") or without a label."""
    if label is None or label.startswith(MIXED):
        return None
    if label.startswith("say "):
        what = label.removeprefix("say ").partition(": ")[0]  # "say a capital: Austin, Boise, Lima"
        relation = _SAY_RELATION.fullmatch(what)
        return True, (relation[1] or relation[2]) if relation else what
    if label.startswith("asked for: "):
        return False, label.removeprefix("asked for: ")
    qualified = _QUALIFIED.fullmatch(label)
    return False, (qualified[1] if qualified else label).strip('"')


def named(title: str) -> list[str]:
    """The concepts in a group's name, without what tells it from others of that name: "Texas", "say Austin"."""
    return _WHERE.sub("", title).split(", ")


def is_named_after(title: str, thing: str) -> bool:
    """Whether a group is called by this thing alone."""
    return named(title) == [thing]


def says(title: str, answer: str) -> bool:
    """Whether a group is called by what it says, and the answer comes first: "say Austin", "say a capital: Austin"."""
    said, _, example = named(title)[0].partition(": ")
    return said.startswith("say ") and (example or said.removeprefix("say ")) == answer
