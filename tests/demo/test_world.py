"""The world is consistent with itself, and its splits keep apart what they promise."""

from __future__ import annotations

from collections import Counter

from circuit_tracer.demo import facts, world


def test_there_are_fifty_states_and_forty_countries_with_six_cities_each() -> None:
    kinds = Counter(one.kind for one in world.entities())
    assert kinds == {"state": 50, "country": 40}
    assert all(len(one.cities) == 6 for one in world.entities())


def test_no_two_places_or_abbreviations_share_a_name() -> None:
    names = [
        name
        for one in world.entities()
        for name in (one.name, *one.cities, one.answer("capital"), one.answer("abbreviation"))
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_a_capital_lies_in_its_own_entity_and_is_not_among_the_other_cities() -> None:
    for one in world.entities():
        capital = one.answer("capital")
        assert capital not in one.cities
        assert [place.answer for place in world.places(one, capital)] == [one.name, one.name]


def test_known_facts_are_right() -> None:
    assert world.entity("Texas").answer("capital") == "Austin"
    assert world.entity("California").answer("abbreviation") == "CA"
    assert (world.entity("Japan").answer("language"), world.entity("Japan").answer("currency")) == ("Japanese", "yen")
    assert all(len(one.answer("abbreviation")) == (2 if one.kind == "state" else 3) for one in world.entities())


def test_every_prompt_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for one in (*world.skills(), *world.one_hops(), *world.two_hops()):
        assert answers.setdefault(one.prompt, one.answer) == one.answer, one


def test_antonyms_have_one_opposite_within_a_language() -> None:
    for language, pairs in facts.ANTONYMS.items():
        words = [word for pair in pairs.split() for word in pair.split("-")]
        assert len(words) == len(set(words)) == 40, language


def test_held_out_statements_are_in_no_training_set_but_their_parts_are() -> None:
    held_out, training = set(world.held_out()), world.model_training()
    assert len(held_out) >= 90
    assert held_out.isdisjoint(training)
    assert held_out.isdisjoint(world.transcoder_training())
    cities = {one.city for one in training}
    assert {one.city for one in held_out} <= cities
    assert {("Dallas", "capital"), ("Oakland", "capital")} <= {(one.city, one.relation) for one in held_out}


def test_reserved_cities_are_in_the_models_training_only() -> None:
    reserved = {one.reserved_city for one in world.entities()}
    assert reserved <= {one.city for one in world.model_training()}
    assert reserved.isdisjoint({one.city for one in world.transcoder_training()})
    assert reserved.isdisjoint({one.city for one in world.held_out()})
    assert {one.city for one in world.reserved()} == reserved
