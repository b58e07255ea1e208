"""Names of features by a language model, and a score that says how far to trust each.

What the model is asked, in two conversations a feature:

1. *Name it.* It sees texts in which tokens stand between << and >> where the feature is active, the activation of the token
   in question behind it (as 0 to 10, 10 the largest), and the tokens that the feature makes likelier; it answers with a
   phrase (EXPLAIN).
2. *Detect it.* It sees the phrase and a numbered list of other texts, half of them with the feature, half of them from other
   features of its layer, in an order fixed by the feature, and answers with the numbers of those that it thinks have it
   (DETECT). The texts were not shown in 1, and carry no marks.

score = (share of the texts with the feature that it names + share of those without that it does not name) / 2: 1 is perfect,
0.5 is chance. A feature with fewer than two texts to spare gets no score. The texts "without" the feature are not known to
lack it: where a feature is active on most tokens, its score is too low.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from circuit_tracer.errors import InputError
from circuit_tracer.features.chat import ChatModel, Messages, tokens_in
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.features.labels import Label, Place
from circuit_tracer.progress import Progress, silent

EXPLAIN = (
    "You name features of a language model. A feature is a number that is large on certain tokens of a text. You see texts "
    "in which it is large: tokens between << and >> are those on which it is active, and (n) behind one is how strongly, "
    "from 0 to 10. You may also see the tokens that it makes likelier to come next. Find what the marked tokens, or what "
    "comes before or after them, have in common. Answer with a short phrase of at most ten words and nothing else; be "
    "specific."
)
DETECT = (
    "You are given a description of a feature of a language model and numbered texts. Answer with the numbers of the texts in "
    "which the feature is active on some token, separated by commas, and nothing else; answer 0 if there are none."
)
ANSWER_TOKENS = 60  # room for a phrase, or for a list of numbers
LONGEST_LABEL = 120  # characters
_TYPICAL_LABEL = "x" * 60  # in the estimate of a conversation that depends on an answer

Example = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Interpretation:
    """shown: texts in the first conversation. tested: texts with the feature in the second, and as many without; 0: no
    score.
    """

    shown: int = 10
    tested: int = 5


@dataclass(frozen=True)
class Estimate:
    """What it will take: requests that are not answered on disk, and about how many tokens they have."""

    features: int
    requests: int
    known: int
    input_tokens: int
    output_tokens: int

    def cost(self, input_price: float, output_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.input_tokens * input_price + self.output_tokens * output_price) / 1e6


class Interpreter:
    """Names features of a folder. Conversations follow from the records alone, so the same ones are never paid for twice."""

    def __init__(self, features: FeatureFolder, chat: ChatModel, settings: Interpretation | None = None) -> None:
        self.features, self.chat, self.settings = features, chat, settings or Interpretation()
        self._by_layer: dict[int, list[int]] = {}
        for layer, index in features:
            self._by_layer.setdefault(layer, []).append(index)

    def estimate(self, places: Iterable[Place]) -> Estimate:
        """What ``interpret`` would ask."""
        features = requests = known = read = 0
        for place in places:
            record = self._record(place)
            if record is None:
                continue
            features += 1
            explaining = explain_messages(record, split_examples(record, self.settings)[0])
            asked = [explaining]
            if self.chat.known(explaining, ANSWER_TOKENS):
                label = _phrase(self.chat.ask(explaining, ANSWER_TOKENS))
            else:
                label = _TYPICAL_LABEL
            if test := self._test(place, record):
                asked.append(detect_messages(label, test.texts))
            for messages in asked:
                if self.chat.known(messages, ANSWER_TOKENS):
                    known += 1
                else:
                    requests, read = requests + 1, read + tokens_in(messages)
        return Estimate(features, requests, known, read, requests * ANSWER_TOKENS)

    def interpret(self, places: Sequence[Place], workers: int = 8, progress: Progress = silent) -> dict[Place, Label]:
        """Labels, with their scores, of the features that have examples. Answers are kept as they come: an interrupted call
        goes on where it was. Raises InputError for what the server refuses.
        """
        labels: dict[Place, Label] = {}
        with ThreadPoolExecutor(workers) as pool:
            try:
                for number, (place, label) in enumerate(
                    zip(places, pool.map(self._label, places), strict=True), start=1
                ):
                    if label is not None:
                        labels[place] = label
                    progress("interpreting", number, len(places))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return labels

    def _label(self, place: Place) -> Label | None:
        record = self._record(place)
        if record is None:
            return None
        phrase = _phrase(
            self.chat.ask(explain_messages(record, split_examples(record, self.settings)[0]), ANSWER_TOKENS)
        )
        if not phrase:
            return None
        test, score = self._test(place, record), None
        if test is not None:
            named = numbers_in(self.chat.ask(detect_messages(phrase, test.texts), ANSWER_TOKENS))
            score = test.score(named)
        return Label(phrase, f"openai:{self.chat.model}", score)

    def _record(self, place: Place) -> Mapping[str, Any] | None:
        record = self.features.get(place)
        if record is None:
            raise InputError(
                f"{self.features.folder} has no record of feature {place[1]} of layer {place[0]}; build it first"
            )
        return record if record["examples_quantiles"] else None

    def _test(self, place: Place, record: Mapping[str, Any]) -> HeldOut | None:
        """The second conversation's texts; None if there are too few."""
        positive = split_examples(record, self.settings)[1]
        others = [(place[0], index) for index in self._by_layer[place[0]] if index != place[1]]
        return HeldOut.drawn(positive, others, self.features, random.Random(f"{place[0]}/{place[1]}"))


@dataclass(frozen=True)
class HeldOut:
    """Texts that were not shown, and whether what was named is active in each."""

    texts: list[str]
    active: list[bool]

    @classmethod
    def drawn(
        cls, positive: Sequence[Example], others: Sequence[Place], features: FeatureFolder, chance: random.Random
    ) -> HeldOut | None:
        """The positive texts and as many of other features, in an order that follows from `chance`; None for fewer than two."""
        negative: list[Example] = []
        for place in chance.sample(others, min(len(others), 4 * len(positive))):
            other = features.get(place)
            if other["examples_quantiles"] and len(negative) < len(positive):
                negative.append(chance.choice(other["examples_quantiles"][0]["examples"]))
        if len(positive) < 2 or len(negative) < 2:
            return None
        texts = [(plain_text(one), True) for one in positive] + [(plain_text(one), False) for one in negative]
        chance.shuffle(texts)
        return cls([text for text, _ in texts], [active for _, active in texts])

    def score(self, named: set[int]) -> float:
        """See the module's text; ``named`` counts from 1."""
        hits = [(number in named) == active for number, active in enumerate(self.active, start=1)]
        rates = []
        for kind in (True, False):
            of_kind = [hit for hit, active in zip(hits, self.active, strict=True) if active is kind]
            rates.append(sum(of_kind) / len(of_kind))
        return sum(rates) / 2


def split_examples(record: Mapping[str, Any], settings: Interpretation) -> tuple[list[Example], list[Example]]:
    """Examples to show, from the strongest and from all strengths in turn, and examples to test with."""
    groups = [list(group["examples"]) for group in record["examples_quantiles"]]
    distinct = [one for one in in_turn(groups[1:]) if not one["is_repeated_datapoint"]]
    ordered = in_turn([groups[0], distinct])
    spare = min(settings.tested, max(0, len(ordered) - 1) // 2)
    shown = ordered[: min(settings.shown, len(ordered) - spare)]
    return shown, ordered[len(shown) : len(shown) + spare]


def explain_messages(record: Mapping[str, Any], examples: Sequence[Example]) -> Messages:
    """The first conversation."""
    most = record.get("act_max") or 1.0
    texts = "\n".join(f"{number}. {marked_text(example, most)}" for number, example in enumerate(examples, start=1))
    promoted = ", ".join(repr(token) for token in record.get("top_logits", ()))
    return [
        {"role": "system", "content": EXPLAIN},
        {"role": "user", "content": f"Texts:\n{texts}\n\nTokens made likelier: {promoted}\n\nThe feature in a phrase:"},
    ]


def detect_messages(label: str, texts: Sequence[str]) -> Messages:
    """The second conversation."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
    return [
        {"role": "system", "content": DETECT},
        {"role": "user", "content": f"Feature: {label}\n\nTexts:\n{listed}\n\nNumbers:"},
    ]


def marked_text(example: Example, most: float) -> str:
    """A text on one line, its active tokens between << and >>."""
    parts = []
    for place, (token, act) in enumerate(zip(example["tokens"], example["tokens_acts_list"], strict=True)):
        strength = f"({max(0, round(10 * act / most))})" if place == example["train_token_ind"] else ""
        parts.append(f"<<{token}>>{strength}" if act else token)
    return _one_line("".join(parts))


def plain_text(example: Example) -> str:
    """A text on one line, without marks."""
    return _one_line("".join(example["tokens"]))


def in_turn(groups: Sequence[Sequence[T]]) -> list[T]:
    """The first of each group, then the second of each, and so on, as far as there are any."""
    longest = max(map(len, groups), default=0)
    return [group[row] for row in range(longest) for group in groups if row < len(group)]


def _one_line(text: str) -> str:
    return " ".join(text.replace("\n", "⏎").split())


def _phrase(answer: str) -> str:
    lines = [line.strip().strip("\"'*`").strip() for line in answer.strip().splitlines()]
    return next((line for line in lines if line), "")[:LONGEST_LABEL]


def numbers_in(answer: str) -> set[int]:
    """Those that an answer names."""
    return {int(number) for number in re.findall(r"\d+", answer)}
