"""The sentences of a story, as templates: all that they say is numbers, titles of groups and tokens."""

from __future__ import annotations

from collections.abc import Sequence

from circuit_tracer.circuits.story.scene import Link, Scene


def answer(scene: Scene) -> str:
    """What is explained."""
    table, row = scene.graph.targets, scene.first_target
    if table.kind[row] != "logit":
        return f"On “{scene.prompt}” the graph explains {scene.titles[scene.answer]}."
    weight = float(table.weight[row])
    says = "says {} with" if weight > 0.5 else "gives {} a probability of"  # of a smaller one, another may be said
    return f"After “{scene.read}” the model {says.format(scene.titles[scene.answer])} {percent(weight)}."


def chains(scene: Scene) -> str:
    """The ways to the answer, token first."""
    if not scene.chains:
        return f"No chain of groups leads from a token to {scene.titles[scene.answer]}."
    ways = (" → ".join(scene.titles[place] for place in way) for way in scene.chains)
    return f"In short: {'; '.join(ways)}."


def reads(scene: Scene, place: int) -> str:
    """Where a group's input, or the output's, comes from."""
    title = scene.titles[place]
    subject = title if place == scene.answer or not scene.groups[place].name else f"{title} ({scene.where(place)})"
    links = scene.sources(place)
    given, held = [link for link in links if link.share > 0], [link for link in links if link.share < 0]
    if not links:
        return f"{subject} takes its input from many places, none of them with a share worth a name."
    parts = [f"takes its input from {_listed(scene, given)}"] if given else []
    parts += [f"is held back by {_listed(scene, held)}"] if held else []
    return f"{subject} {' and '.join(parts)}."


def carries(scene: Scene, place: int) -> str:
    """What a group is worth."""
    return (
        f"{scene.titles[place]} passes on {percent(scene.influence[place], 0)} of the influence on "
        f"{scene.titles[scene.answer]}."
    )


def contrast(scene: Scene, place: int, other: Scene, other_place: int) -> str:
    """What another prompt's group would do in the place of this one's."""
    return (
        f"With {other.titles[other_place]} of “{other.prompt}” in the place of {scene.titles[place]}, the model "
        f"would say {other.titles[other.answer]}."
    )


def percent(share: float, digits: int = 1) -> str:
    """Such as "99.7 %"; what is less than the last digit is said to be."""
    least = 10.0 ** -(digits + 2)
    text = f"under {least:.{digits}%}" if 0 < share < least / 2 else f"{share:.{digits}%}"
    return text.replace("%", " %")


def _listed(scene: Scene, links: Sequence[Link]) -> str:
    named = [f"{scene.titles[link.source]} ({percent(abs(link.share), 0)})" for link in links]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
