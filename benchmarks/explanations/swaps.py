"""The entity's group swapped for another entity's, taken from the graph of another prompt; and random groups of its size.

A swap turns the answer if the model then says the other entity's. Both prompts ask the same; the other is one that model and
dictionary were trained on, and whose entity's group is found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.explanations.explained import Explained
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.demo import world
from circuit_tracer.interventions import Edit, Semantics, ablate, apply_each, swap_groups
from circuit_tracer.interventions.features.edits import FeatureAt

STRENGTHS = (1.0, 2.0)  # times what the features are on the other prompt
DRAWS = 3  # pairs of random groups for each prompt
LIVE = Semantics("direct", freeze_attention=False)


def swaps(cases: Sequence[Explained], donors: Sequence[Explained], model: Traceable) -> dict[str, float | int]:
    """Shares of the prompts for which there is another; one whose entity has no group counts as not turned."""
    chance = random.Random(0)
    turned: dict[str, list[bool]] = {f"the answer turns, {strength:g}x": [] for strength in STRENGTHS}
    turned |= {f"random groups, {strength:g}x": [] for strength in STRENGTHS} | {
        "the answer stays without the group": []
    }
    tried = 0
    for case in cases:
        fit = [other for other in donors if is_donor(other, case)]
        if not fit:
            continue
        donor = chance.choice(fit)
        if not case.entity:
            for strength in STRENGTHS:
                turned[f"the answer turns, {strength:g}x"].append(False)
            continue
        tried += 1
        experiments: list[list[Edit]] = [
            swap_groups(case.graph, case.entity, donor.graph, donor.entity, strength=strength) for strength in STRENGTHS
        ]
        drawn = [(_others(case, chance), _others(donor, chance)) for _ in range(DRAWS)]
        experiments += [
            swap_groups(case.graph, ours, donor.graph, theirs, strength=strength)
            for strength in STRENGTHS
            for ours, theirs in drawn
        ]
        experiments.append([ablate(_features(case.entity))])
        tops = [outcome.tokens(1)[0].text for outcome in apply_each(model, case.graph, experiments, LIVE, watch="none")]
        hits = [top.strip() == donor.statement.answer for top in tops]
        for number, strength in enumerate(STRENGTHS):
            turned[f"the answer turns, {strength:g}x"].append(hits[number])
            first = len(STRENGTHS) + number * DRAWS
            turned[f"random groups, {strength:g}x"] += hits[first : first + DRAWS]
        turned["the answer stays without the group"].append(tops[-1].strip() == case.statement.answer)
    shares: dict[str, float | int] = {"swaps tried": tried}
    return shares | {name: round(sum(hits) / max(1, len(hits)), 4) for name, hits in turned.items()}


def is_donor(other: Explained, case: Explained) -> bool:
    """Whether it asks the same of another entity of that kind, with another answer, and has a group to give."""
    return asks_the_same(other, case) and bool(other.entity)


def asks_the_same(other: Explained, case: Explained) -> bool:
    """Whether it asks the same of another entity of that kind, with another answer."""
    ours, theirs = case.statement, other.statement
    alike = world.entity(str(ours.entity)).kind == world.entity(str(theirs.entity)).kind
    return alike and ours.relation == theirs.relation and ours.answer != theirs.answer


def _others(case: Explained, chance: random.Random) -> list[str]:
    """As many features of the groups as the entity's group has, none of them its own."""
    own = set(case.entity)
    rest = [node for group in case.of_features for node in group.members if node not in own and node in case.label]
    return chance.sample(rest, min(len(own), len(rest)))


def _features(nodes: Sequence[str]) -> list[FeatureAt]:
    places = [[int(part) for part in node.split("_")] for node in nodes]
    return [FeatureAt(layer, position, index) for layer, index, position in places]
