"""Names of groups by a language model behind an endpoint, and a score from texts that it had not seen.

Two conversations a group (`features/interpret.py` has them for single features):

1. *Name it.* It sees the prompt with the group's tokens marked, its members' labels, texts in which each member is active and
   the tokens that the members make likelier. It answers with one JSON object: "kind", one of "detects" and "says", and "name".
2. *Find it.* It sees the name and other texts, half of them ones in which a member is active, half of other features of its
   layers, and answers with the numbers of those that it thinks the group is active in. None of them was shown in 1.

An answer whose kind contradicts the group's role is not taken: what a group does is read off the graph's matrices.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuit_tracer.circuits.naming.concepts import Concept, shortened_name
from circuit_tracer.circuits.naming.names import active_members
from circuit_tracer.circuits.naming.promoted import Active
from circuit_tracer.circuits.profiles import label_of
from circuit_tracer.circuits.supernodes import Grouping, Supernode, members_of
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.features.chat import ChatModel, Messages
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.features.interpret import (
    Example,
    HeldOut,
    Interpretation,
    detect_messages,
    in_turn,
    marked_text,
    numbers_in,
    plain_text,
    split_examples,
)
from circuit_tracer.files import parse_json
from circuit_tracer.graph.graph import Graph

GroupKind = Literal["detects", "says"]
NAME = (
    "You name a group of features of a language model that act together on one prompt. You see the prompt, with the tokens on "
    "which the group is active between << and >>; labels of its features; texts in which they are active, marked alike, with "
    "(n) for how strongly, from 0 to 10; and tokens that they make likelier to come next. Say what they have in common. Answer "
    'with one JSON object and nothing else: {"kind": "detects" or "says", "name": "..."}. kind is "detects" for a group that '
    'stands for something in the text before it, and "says" for one that makes the model say something; name is a phrase of at '
    "most five words, without the words detects or says."
)
ANSWER_TOKENS = 60


@dataclass(frozen=True)
class GroupName:
    """A group's name by a language model.

    Attributes:
        score: Share of held-out texts told apart, 0.5 is chance; None: too few texts.
    """

    name: str
    kind: GroupKind
    source: str
    score: float | None


def interpret_groups(
    graph: Graph,
    grouping: Grouping,
    features: FeatureFolder,
    chat: ChatModel,
    labels: Mapping[Any, str] | None = None,
    settings: Interpretation | None = None,
) -> dict[int, GroupName]:
    """Names by the place of a group of features in the grouping; without those that the model gave no usable answer for.

    `grouping.named({place: each.name for ...})` takes them.

    Args:
        graph: The attribution graph.
        grouping: Its groups (`group_nodes`).
        features: Records with examples of the features.
        chat: The language model.
        labels: Of features, which it is told.
        settings: How it is asked and scored; None: the usual.

    Returns:
        Names by the place of a group in the grouping.

    Raises:
        InputError: For what the server refuses.
    """
    settings, found = settings or Interpretation(), {}
    for place, members in enumerate(active_members(graph, grouping)):
        group = grouping.supernodes[place]
        shown, spare = _split(members, features, settings)
        if not shown:
            continue
        answer = chat.ask(name_messages(graph, group, members, shown, features, labels or {}), ANSWER_TOKENS)
        named = read_answer(answer, group)
        if named is None:
            continue
        test = _held_out(members, spare, features)
        score = None
        if test is not None:
            score = test.score(numbers_in(chat.ask(detect_messages(str(named), test.texts), ANSWER_TOKENS)))
        kind: GroupKind = "says" if named.says else "detects"
        found[place] = GroupName(shortened_name(str(named)), kind, f"openai:{chat.model}", score)
    return found


def read_answer(answer: str, group: Supernode) -> Concept | None:
    """What the model said; None if it is no such object, or contradicts the group's role."""
    match = re.search(r"\{.*\}", answer, re.S)
    try:
        said = parse_json(match[0], "the answer") if match else None
    except CircuitTracerError:
        return None
    if (
        not isinstance(said, dict)
        or said.get("kind") not in get_args(GroupKind)
        or not isinstance(said.get("name"), str)
    ):
        return None
    name = " ".join(said["name"].split()).strip("\"'“”.")
    if not name or (group.role in get_args(GroupKind) and said["kind"] != group.role):
        return None
    return Concept(name.removeprefix("say ").strip(), says=said["kind"] == "says")


def name_messages(
    graph: Graph,
    group: Supernode,
    members: Sequence[Active],
    shown: Sequence[tuple[Example, float]],
    features: FeatureFolder,
    labels: Mapping[Any, str],
) -> Messages:
    """The first conversation. shown: texts, each with its feature's largest activation."""
    active = {int(graph.nodes.position[node]) for node in members_of(graph, group)}
    prompt = "".join(f"<<{text}>>" if place in active else text for place, text in enumerate(graph.token_texts))
    texts = "\n".join(
        f"{number}. {marked_text(example, most)}" for number, (example, most) in enumerate(shown, start=1)
    )
    told = (label_of(labels, member.node, *member.place) for member in members)
    known = list(dict.fromkeys(filter(None, told)))
    records = [record for member in members if (record := features.get(member.place)) is not None]
    promoted = list(dict.fromkeys(token for record in records for token in record.get("top_logits", ())[:5]))
    content = (
        f"Prompt: {prompt}\n\nLabels: {json.dumps(known, ensure_ascii=False)}\n\nTexts:\n{texts}\n\nTokens made likelier: "
        f"{', '.join(map(repr, promoted))}\n\nThe group:"
    )
    return [{"role": "system", "content": NAME}, {"role": "user", "content": content}]


def _split(
    members: Sequence[Active], features: FeatureFolder, settings: Interpretation
) -> tuple[list[tuple[Example, float]], list[Example]]:
    """Texts to show, of each member in turn, with its largest activation; and texts that are kept for the test."""
    shown, spare = [], []
    for member in members:
        record = features.get(member.place)
        if record is None or not record["examples_quantiles"]:
            continue
        first, rest = split_examples(record, settings)
        shown.append([(example, record.get("act_max") or 1.0) for example in first])
        spare.append(rest)
    seen = {plain_text(example) for each in shown for example, _ in each}
    unseen = [
        example for example in in_turn(spare) if plain_text(example) not in seen
    ]  # another member may have shown it
    return in_turn(shown)[: settings.shown], unseen[: settings.tested]


def _held_out(members: Sequence[Active], spare: Sequence[Example], features: FeatureFolder) -> HeldOut | None:
    """The second conversation's texts; None if there are too few."""
    places = {member.place for member in members}
    layers = {layer for layer, _ in places}
    others = [place for place in features if place[0] in layers and place not in places]
    chance = random.Random(str(sorted(places)))
    return HeldOut.drawn(spare, others, features, chance)
