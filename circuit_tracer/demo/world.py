"""The world that the demo model knows: statements with one right answer, and which of them are kept out of training.

One-hop:  "the capital of Texas is" -> Austin            Two-hop:  "the capital of the state containing Dallas is" -> Austin
Skills:   "the opposite of big is" -> small              "after Monday comes" -> Tuesday

Splits. ``held_out``: two-hop statements that neither the model nor the transcoder sees in training (their parts are
seen: the city in other statements, the relation with other cities). Reserved cities (the last of each entity): the model
learns them like any other, but the transcoder's training, the choice of an entity's features and the choice of the seed
never touch them; only the swap test does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from circuit_tracer.demo import facts

RELATIONS = {"state": ("capital", "abbreviation"), "country": ("capital", "abbreviation", "language", "currency")}

# Statements that the README shows; held out of training so that the answer is composed, not recalled.
SHOWN = (("Dallas", "capital"), ("Oakland", "capital"))


@dataclass(frozen=True)
class Entity:
    """A state or a country with what is true of it."""

    kind: str  # "state" | "country"
    name: str
    values: tuple[tuple[str, str], ...]  # (relation, answer)
    cities: tuple[str, ...]  # six, the capital not among them; the last is reserved

    def answer(self, relation: str) -> str:
        """The value of ``relation`` (a KeyError for one that this kind of entity does not have)."""
        return dict(self.values)[relation]

    @property
    def reserved_city(self) -> str:
        return self.cities[-1]

    @property
    def open_cities(self) -> tuple[str, ...]:
        """The cities that may be used to find the entity's features."""
        return self.cities[:-1]


@dataclass(frozen=True)
class Statement:
    """A prompt with one right answer, each word or name one token. ``subject`` is the token the question is about."""

    prompt: str
    answer: str
    subject: str
    relation: str  # "capital", ..., "place", "antonym", "successor"
    hops: int  # 0 for skills
    entity: str | None = None
    city: str | None = None

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}"


def _rows(table: str) -> Iterator[list[str]]:
    for line in table.strip().splitlines():
        yield [cell.strip() for cell in line.split("|")]


@cache
def entities() -> tuple[Entity, ...]:
    """All states, then all countries."""
    found = []
    for name, abbreviation, capital, cities in _rows(facts.STATES):
        of_state = (("capital", capital), ("abbreviation", abbreviation))
        found.append(Entity("state", name, of_state, tuple(cities.split(", "))))
    for name, abbreviation, capital, language, currency, cities in _rows(facts.COUNTRIES):
        of_country = (
            ("capital", capital),
            ("abbreviation", abbreviation),
            ("language", language),
            ("currency", currency),
        )
        found.append(Entity("country", name, of_country, tuple(cities.split(", "))))
    return tuple(found)


@cache
def entity(name: str) -> Entity:
    """The entity of that name; KeyError if there is none."""
    return {one.name: one for one in entities()}[name]


def two_hop(one: Entity, city: str, relation: str) -> Statement:
    """The question about a city's entity: "the capital of the state containing Dallas is" -> Austin."""
    prompt = f"the {relation} of the {one.kind} containing {city} is"
    return Statement(prompt, one.answer(relation), city, relation, 2, one.name, city)


def one_hop(one: Entity, relation: str) -> Statement:
    """The question about an entity by name: "the capital of Texas is" -> Austin."""
    return Statement(f"the {relation} of {one.name} is", one.answer(relation), one.name, relation, 1, one.name)


def places(one: Entity, city: str) -> tuple[Statement, Statement]:
    """Where a city lies, said twice: "Dallas is in" -> Texas and "the state containing Dallas is" -> Texas."""
    return (
        Statement(f"{city} is in", one.name, city, "place", 1, one.name, city),
        Statement(f"the {one.kind} containing {city} is", one.name, city, "place", 1, one.name, city),
    )


@cache
def skills() -> tuple[Statement, ...]:
    """Antonyms in three languages, both directions, and successors of numbers, weekdays and months."""
    found = []
    for language, pairs in facts.ANTONYMS.items():
        for pair in pairs.split():
            left, right = pair.split("-")
            for word, opposite in ((left, right), (right, left)):
                prompt = facts.ANTONYM_PROMPTS[language].format(word)
                found.append(Statement(prompt, opposite, word, "antonym", 0))
    for sequence, wraps in (
        (facts.NUMBER_WORDS, False),
        (facts.NUMBERS, False),
        (facts.WEEKDAYS, True),
        (facts.MONTHS, True),
    ):
        names = sequence.split()
        following = names[1:] + names[:1] if wraps else names[1:]
        for name, next_name in zip(names, following, strict=False):
            found.append(Statement(facts.SUCCESSOR_PROMPT.format(name), next_name, name, "successor", 0))
    return tuple(found)


@cache
def one_hops() -> tuple[Statement, ...]:
    """Facts of the entities, and where every city and capital lies."""
    found = []
    for one in entities():
        found += [one_hop(one, relation) for relation in RELATIONS[one.kind]]
        for city in (*one.cities, one.answer("capital")):
            found += places(one, city)
    return tuple(found)


@cache
def two_hops() -> tuple[Statement, ...]:
    """Every relation of every city's entity."""
    return tuple(
        two_hop(one, city, relation) for one in entities() for city in one.cities for relation in RELATIONS[one.kind]
    )


@cache
def held_out() -> tuple[Statement, ...]:
    """Two-hop statements kept out of all training: one an entity, cities and relations in turn, and those of SHOWN."""
    chosen = set(SHOWN)
    for index, one in enumerate(entities()):
        relations = RELATIONS[one.kind]
        city = one.open_cities[index % len(one.open_cities)]
        if not any(city == shown for shown, _ in SHOWN):
            chosen.add((city, relations[(index // len(one.open_cities)) % len(relations)]))
    return tuple(one for one in two_hops() if (one.city, one.relation) in chosen)


@cache
def reserved() -> tuple[Statement, ...]:
    """The two-hop statements of the reserved cities: the questions of the swap test."""
    return tuple(two_hop(one, one.reserved_city, relation) for one in entities() for relation in RELATIONS[one.kind])


@cache
def model_training() -> tuple[Statement, ...]:
    """What the language model is trained on: everything but the held-out statements."""
    out = set(held_out())
    return tuple(one for one in (*skills(), *one_hops(), *two_hops()) if one not in out)


@cache
def transcoder_training() -> tuple[Statement, ...]:
    """What the transcoder is trained on: the model's training statements without the reserved cities."""
    kept_out = {one.reserved_city for one in entities()}
    return tuple(one for one in model_training() if one.city not in kept_out)


@cache
def seen_two_hops() -> tuple[Statement, ...]:
    """The two-hop statements that both model and transcoder are trained on."""
    return tuple(one for one in transcoder_training() if one.hops == 2)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word and name, sorted; names of several words ("New York City") are one entry each."""
    names = {name for one in entities() for name in (one.name, *one.cities, *(value for _, value in one.values))}
    words: set[str] = set()
    for statement in (*skills(), *one_hops(), *two_hops()):
        rest = statement.prompt.replace(statement.subject, " ")
        words |= {statement.answer, statement.subject, *rest.split()}
    return tuple(sorted(words | names))
