"""What the model does when a group of features is taken out or doubled, beside random groups of the same size.

On a prompt, the group is every node of its graph whose feature belongs to it, at whatever position. A random group is as many
other features of the same graph, drawn from those that pruning keeps where there are enough: features that carry influence,
which is harder to beat than any features. Nothing is held: the whole model reacts.

Taking out what carries influence breaks answers, whatever it is. So where it is known which answers are right, a group is
judged by whether rows come to behave like those of the other labels: right more often where the others are, less often where
they are less. Where nothing is known, by how often the answer changes.

Whether that is more than chance is an exact test: were the group one of the random ones, then in each prompt it would be any of
the 1 + `DRAWS` with the same chance, and how many prompts do what it is judged by would be a sum of independent draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.interventions import Semantics, apply_each, scale
from circuit_tracer.interventions.features.edits import FeatureAt
from circuit_tracer.interventions.features.outcome import Outcome
from circuit_tracer.many.report.behaviour import same_answer
from circuit_tracer.many.report.rates import Mean, Rate

STRENGTHS = (0.0, 2.0)  # times their own activation: taken out, doubled
DRAWS = 5  # random groups a prompt
ERROR = 0.05  # chance that any group at any strength is said to steer, if none does more than random ones
LIVE = Semantics("direct", freeze_attention=False)

Members = frozenset[tuple[int, int]]  # (layer, feature)


class Effect(NamedTuple):
    """Of one intervention: whether the most probable token changed; whether it was the right answer before and is it now (None:
    not known); by how much the log probability of the clean one changed.
    """

    changed: bool
    before: bool | None
    right: bool | None
    log_probability: float

    def does(self, towards: int | None) -> bool:
        """What a group is judged by. towards: 1 if right answers are what should become more frequent, -1 if wrong ones, 0 if
        neither; None: nothing is known, and changes count.
        """
        if towards is None:
            return self.changed
        return towards != 0 and self.right is (towards > 0)


Pair = tuple[Effect, list[Effect]]  # of a group, and of its random groups, on one prompt


class Behaviours(NamedTuple):
    """expected: right answers by id, empty if none are known. towards: by group (`Effect.does`)."""

    expected: Mapping[str, str]
    towards: Mapping[str, int | None]


@dataclass(frozen=True)
class Steered:
    """A group at one strength, over prompts. rows: those that were steered. size: nodes of the group a prompt, mean.

    changed, random_changed: how often the most probable token became another one. before: how often it is the right answer
    without steering; right, random_right: with it; None if that is not known. difference: by how much more prompts do what the
    group is judged by than with random groups, a prompt's as their mean. p: the chance of that for a group drawn as the random
    ones are (`chance`), times the number of tests, of all groups at all strengths (Bonferroni), 1 at most. log_probability,
    random_log_probability: mean change, of the token that was most probable.
    """

    strength: float
    rows: int
    size: float
    changed: Rate
    random_changed: Rate
    before: Rate | None
    right: Rate | None
    random_right: Rate | None
    difference: Mean
    p: float
    log_probability: Mean
    random_log_probability: Mean

    @property
    def steers(self) -> bool:
        """Whether it does what it is judged by more often than random groups, by test and interval."""
        return self.p <= ERROR and self.difference.low is not None and self.difference.low > 0


def steer(
    graphs: Iterable[tuple[str, Graph]],
    model: Traceable,
    groups: Mapping[str, Members],
    rows: Mapping[str, Sequence[str]],
    behaviours: Behaviours,
    seed: int,
) -> dict[str, list[Steered]]:
    """A list with an entry a strength, by group. graphs: read once. rows: ids of the graphs that each group is tested on; those
    without a member are skipped.
    """
    found: dict[str, list[list[Pair]]] = {name: [[] for _ in STRENGTHS] for name in groups}
    sizes: dict[str, list[int]] = {name: [] for name in groups}
    for id, graph in graphs:
        here = {name: nodes for name in groups if id in rows[name] and len(nodes := _nodes(graph, groups[name]))}
        if not here:
            continue
        for name, effects in _of_prompt(graph, model, here, behaviours.expected.get(id), _generator(seed, id)).items():
            sizes[name].append(len(here[name]))
            for number, pair in enumerate(effects):
                found[name][number].append(pair)
    tests = len(groups) * len(STRENGTHS)
    return {
        name: [
            over_prompts(strength, sizes[name], pairs, behaviours.towards[name], tests, seed)
            for strength, pairs in zip(STRENGTHS, found[name], strict=True)
        ]
        for name in groups
    }


def _of_prompt(
    graph: Graph,
    model: Traceable,
    groups: Mapping[str, np.ndarray],
    expected: str | None,
    chance: np.random.Generator,
) -> dict[str, list[Pair]]:
    """The group's effect and those of its random groups, for each strength, by group."""
    kept = torch.nonzero(prune_graph(graph).node_mask[graph.nodes.layout.features].cpu()).flatten().numpy()
    sets = {name: [nodes, *_drawn(graph, nodes, kept, chance)] for name, nodes in groups.items()}
    experiments = [
        [scale(_features(graph, nodes), strength)] for each in sets.values() for strength in STRENGTHS for nodes in each
    ]
    position = int(graph.targets.position.max())
    outcomes = apply_each(model, graph, experiments, LIVE, watch="none")
    effects = iter([_effect(one, expected, position) for one in outcomes])
    made = {}
    for name, each in sets.items():
        made[name] = [(next(effects), [next(effects) for _ in each[1:]]) for _ in STRENGTHS]
    return made


def _nodes(graph: Graph, members: Members) -> np.ndarray:
    """Feature nodes of the members."""
    features = graph.active_features[graph.selected_features].cpu()
    layers, indices = features[:, 0].tolist(), features[:, 2].tolist()
    return np.array(
        [node for node, each in enumerate(zip(layers, indices, strict=True)) if each in members], dtype=np.int64
    )


def _drawn(graph: Graph, nodes: np.ndarray, kept: np.ndarray, chance: np.random.Generator) -> list[np.ndarray]:
    """Random groups of as many nodes; none if the graph has too few others."""
    others = np.setdiff1d(kept, nodes)
    if len(others) < len(nodes):
        others = np.setdiff1d(np.arange(len(graph.selected_features)), nodes)
    if len(others) < len(nodes):
        return []
    return [chance.choice(others, len(nodes), replace=False) for _ in range(DRAWS)]


def _features(graph: Graph, nodes: np.ndarray) -> list[FeatureAt]:
    rows = graph.active_features[graph.selected_features[torch.from_numpy(nodes)]].tolist()
    return [FeatureAt(layer, position, index) for layer, position, index in rows]


def _effect(outcome: Outcome, expected: str | None, position: int) -> Effect:
    clean, steered = (torch.log_softmax(each[position].double(), -1) for each in (outcome.clean_logits, outcome.logits))
    top, before, right = int(clean.argmax()), None, None
    if expected is not None:
        answers = outcome.tokens(1, position)  # the new one, and that without steering if it is another
        before, right = (same_answer(answers[place].text, expected) for place in (-1, 0))
    return Effect(int(steered.argmax()) != top, before, right, float(steered[top] - clean[top]))


def chance(pairs: Sequence[Pair], towards: int | None) -> float:
    """P(as many prompts or more do what the group is judged by), the group in each being any of 1 + `DRAWS` with equal chance.

    The sum of draws with the shares h_i of those that do, its distribution the product of (1 - h_i) + h_i x. 1 of no prompts.
    """
    found = [[each.does(towards) for each in (one, *others)] for one, others in pairs]
    distribution = np.ones(1)
    for each in found:
        distribution = np.convolve(distribution, [1 - float(np.mean(each)), float(np.mean(each))])
    return min(1.0, float(distribution[sum(group for group, *_ in found) :].sum()))


def over_prompts(
    strength: float,
    sizes: list[int],
    pairs: list[Pair],
    towards: int | None,
    tests: int,
    seed: int,
) -> Steered:
    """What a group did at one strength. sizes, pairs: a prompt each. tests: how many there are of this kind."""
    drawn = [other for _, others in pairs for other in others]
    judged = [(one, others) for one, others in pairs if others and (towards is None or one.right is not None)]
    more = [one.does(towards) - float(np.mean([other.does(towards) for other in others])) for one, others in judged]
    return Steered(
        strength=strength,
        rows=len(pairs),
        size=float(np.mean(sizes)) if sizes else 0.0,
        changed=Rate.of([one.changed for one, _ in pairs]),
        random_changed=Rate.of([other.changed for other in drawn]),
        before=_known([one.before for one, _ in pairs]),
        right=_known([one.right for one, _ in pairs]),
        random_right=_known([other.right for other in drawn]),
        difference=Mean.of(more, seed),
        p=min(1.0, chance(judged, towards) * tests),
        log_probability=Mean.of([one.log_probability for one, _ in pairs], seed),
        random_log_probability=Mean.of([other.log_probability for other in drawn], seed),
    )


def _known(right: Sequence[bool | None]) -> Rate | None:
    known = [each for each in right if each is not None]
    return Rate.of(known) if known else None


def _generator(seed: int, id: str) -> np.random.Generator:
    """The same for a row whatever other rows there are."""
    return np.random.default_rng([seed, *id.encode()])
