"""Another prompt beside: its groups put in the place of this prompt's, and what the model then says.

A group that detects, and that the other prompt does not have as it is, is swapped for the most influential group of the same
role at the same positions there. All of its features become 0 and the other's what they are there, in the real model; where
that does not do it, at twice that (the usual strength of steering; both are reported).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.story import words
from circuit_tracer.circuits.story.scene import Scene
from circuit_tracer.circuits.story.story import Evidence, Measurement, Sentence
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.apply import apply_edits
from circuit_tracer.interventions.features.semantics import Semantics
from circuit_tracer.interventions.features.swap import swap_groups

STRENGTHS = (1.0, 2.0)
ALIKE = 0.5  # share of members, of both groups' together, from which on two prompts have the same group
MOST_SWAPS = 3
LIVE = Semantics("direct", freeze_attention=False)


@dataclass(frozen=True)
class Contrast:
    """The graph of another prompt of as many tokens, with its named groups.

    Attributes:
        graph: Of the other prompt.
        grouping: Its groups, with names.
    """

    graph: Graph
    grouping: Grouping


def contrasted(scene: Scene, contrast: Contrast, model: Traceable | None) -> Iterator[Sentence]:
    """A sentence for each pair of groups, the most influential first; tested if there is a model.

    Raises InputError for prompts of different length.
    """
    other = Scene(contrast.graph, contrast.grouping)
    if scene.graph.n_pos != other.graph.n_pos:
        raise InputError(
            f"the contrast {other.graph.input_string!r} has {other.graph.n_pos} tokens and the prompt {scene.graph.n_pos}; "
            "groups are swapped position by position: give one of the same length"
        )
    for place, other_place in pairs(scene, other)[:MOST_SWAPS]:
        yield Sentence(
            "contrast",
            words.contrast(scene, place, other, other_place),
            scene.ids([place]),
            None if model is None else _swapped(scene, place, other, other_place, model),
        )


def pairs(scene: Scene, other: Scene) -> list[tuple[int, int]]:
    """Groups that detect, the most influential first, each with the one that stands in its place on the other prompt."""
    found, taken = [], set()
    for place in sorted(scene.spoken, key=lambda place: -scene.influence[place]):
        group = scene.groups[place]
        if group.role not in ("detects", "mixed") or _has(other, group.members):
            continue
        rivals = [
            there
            for there in other.spoken
            if other.groups[there].role == group.role
            and _positions(other, there) == _positions(scene, place)
            and not _has(scene, other.groups[there].members)
            and there not in taken
        ]
        if rivals:
            best = max(rivals, key=lambda there: other.influence[there])
            taken.add(best)
            found.append((place, best))
    return found


def _swapped(scene: Scene, place: int, other: Scene, other_place: int, model: Traceable) -> Evidence:
    wanted, answer, nodes = _answer(other), other.titles[other.answer], scene.ids([place])
    rows, texts, holds = [], [], False
    for strength in STRENGTHS:
        edits = swap_groups(scene.graph, nodes, other.graph, other.ids([other_place]), strength=strength)
        outcome = apply_edits(model, scene.graph, edits, LIVE, watch="none")
        tokens = outcome.tokens(1, int(scene.graph.targets.position[scene.first_target]), others=(wanted,))
        said = next(token for token in tokens if token.token_id == wanted)
        top = min(tokens, key=lambda token: token.rank_after)
        rows.append(Measurement("swap", nodes, answer, "probability", said.probability_before, said.probability_after))
        at = "" if strength == 1 else f" at {strength:g} times its activation"
        texts.append(f"it says “{top.text.strip() or top.text}” with {words.percent(top.probability_after)}{at}")
        if holds := top.token_id == wanted:
            break
    before = words.percent(rows[0].before)
    return Evidence(f"Then {'; '.join(texts)}; {answer} had {before} before.", holds, tuple(rows))


def _answer(other: Scene) -> int:
    """The token that the other prompt's graph explains."""
    if other.graph.targets.kind[other.first_target] != "logit":
        raise InputError(
            f"the graph of the contrast {other.prompt!r} explains no token, so there is no answer to expect; trace it for its "
            "next token"
        )
    return int(other.graph.targets.token_id[other.first_target])


def _positions(scene: Scene, place: int) -> list[int]:
    positions: list[int] = scene.graph.nodes.position.cpu()[list(scene.circuit.nodes[place])].unique().tolist()
    return positions


def _has(scene: Scene, members: tuple[str, ...]) -> bool:
    """Whether a graph has a group of about these members."""
    wanted = set(members)
    return any(len(wanted & set(group.members)) > ALIKE * len(wanted | set(group.members)) for group in scene.groups)
