"""What taking groups out has shown, in words; those of the whole graph are in verdict.py."""

from __future__ import annotations

from collections.abc import Iterator

from circuit_tracer.graph.validation import GroupEffect, GroupTest, Measure
from circuit_tracer.interventions.validation.verdict import CONTROL_MARGIN, MIN_SPEARMAN, SLOPES

NAMED = 3  # groups that have a sentence of their own: those that do most
MAX_SYNERGY = 0.5  # what a group does beyond its members, as a share of what it does
MIN_EFFECT = 0.1  # of the largest group's: smaller ones are not spoken of


def group_verdict(test: GroupTest | None, target: str, measure: Measure) -> Iterator[str]:
    """What was found, a sentence each."""
    if test is None:
        return
    live, links = test.agreement["live"], test.links["live"]
    if live.slope is not None and live.spearman is not None:
        yield (
            f"Taken out at once in the real model, {live.count} groups do {live.slope:.2f} times what the graph's paths say "
            f"(Spearman {live.spearman:.2f})."
        )
    if links.slope is not None and links.spearman is not None:
        yield (
            f"What a group loses without another is {links.slope:.2f} times what the graph's paths say (Spearman "
            f"{links.spearman:.2f}, {links.count} pairs)."
        )
    for effect in _largest(test):
        random = effect.random
        beside = (
            "" if random is None else f"; {random.count} random groups of its size leave {random.left:.2f} on average"
        )
        yield (
            f"Without {effect.name!r} the {measure} of {target!r} goes from {test.clean:.2f} to {effect.left['live']:.2f}"
            f"{beside}."
        )
    circuit = test.circuit["live"]
    yield (
        f"Without all groups it is {circuit.without:.2f}{_beside(circuit.without_others)}; with nothing but them "
        f"{circuit.only:.2f}{_beside(circuit.only_others)}, with nothing at all {circuit.nothing:.2f}."
    )


def group_distrust(test: GroupTest | None, measure: Measure) -> Iterator[str]:
    """What not to trust of the groups, a sentence each."""
    if test is None:
        return
    live = test.agreement["live"]
    if live.spearman is not None and live.spearman < MIN_SPEARMAN:
        yield (
            f"Do not trust which group matters more, because in the real model the graph's paths rank what groups do with "
            f"Spearman {live.spearman:.2f} only."
        )
    if live.slope is not None and not SLOPES[0] <= live.slope <= SLOPES[1]:
        yield f"Do not read what the graph says of groups as sizes: in the real model they do {live.slope:.2f} times that."
    for effect in _largest(test):
        change, random, synergy = effect.measured["live"], effect.random, effect.synergy
        assert change is not None
        if random is not None and random.change_low <= change <= random.change_high:
            yield (
                f"Do not trust that {effect.name!r} is special, because random groups of its size do as much (from "
                f"{random.change_low:+.2f} to {random.change_high:+.2f}, against {change:+.2f})."
            )
        if synergy is not None and abs(synergy) > MAX_SYNERGY * abs(change):
            yield (
                f"Do not read {effect.name!r} as the sum of its members, because together they do {change:+.2f} and one by one "
                f"{effect.singles:+.2f}."
            )
    circuit = test.circuit["live"]
    necessity, others = circuit.necessity, circuit.necessity_of_others
    if necessity is not None and others is not None and others > necessity - CONTROL_MARGIN:
        yield (
            f"Do not trust that the groups together are special, because as much of the {measure} goes with as many other "
            f"features (left are {circuit.without_others:.2f} against {circuit.without:.2f})."
        )


def _largest(test: GroupTest) -> list[GroupEffect]:
    """The groups that do most in the real model, largest first."""
    sized = [(abs(change), effect) for effect in test.effects if (change := effect.measured["live"]) is not None]
    sized.sort(key=lambda each: -each[0])
    return [effect for size, effect in sized[:NAMED] if size > MIN_EFFECT * sized[0][0]]


def _beside(value: float | None) -> str:
    return "" if value is None else f" (as many other features: {value:.2f})"
