"""Every word and name of the world is one token, and text survives the way there and back."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from circuit_tracer.demo import MODEL, world
from circuit_tracer.demo.tokenizer import BOS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_every_statement_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    for one in (*world.skills(), *world.one_hops(), *world.two_hops()):
        ids = tokenizer(one.text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == f"{BOS} {one.text}"


def test_a_name_of_several_words_is_one_token_and_the_longest_wins(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("Jackson Hole is in") == ["Jackson Hole", "is", "in"]
    assert tokenizer.tokenize("Jackson is in") == ["Jackson", "is", "in"]
    assert tokenizer.tokenize("New York City is in New York") == ["New York City", "is", "in", "New York"]


def test_an_answer_is_one_token_with_or_without_a_space(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("Austin", " Austin"):
        assert tokenizer(text, add_special_tokens=False).input_ids == [tokenizer.vocab["Austin"]]


def test_a_sentence_may_begin_with_a_capital(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("The capital of Texas is").input_ids == tokenizer("the capital of Texas is").input_ids


def test_a_foreign_word_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Gotham", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]


def test_the_shipped_tokenizer_is_the_one_built_here(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PreTrainedTokenizerFast.from_pretrained(MODEL).get_vocab() == tokenizer.get_vocab()
