"""Packed sequences: nothing lost, nothing twice, resumable everywhere; documents kept apart by their number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.text import packing
from circuit_tracer.text.documents import Cursor, Document, Documents
from circuit_tracer.text.packing import Packer, is_held_out
from circuit_tracer.text.special import SpecialTokens
from tests.support import data_cases
from tests.support.data_cases import BOS, EOS, PAD

SPECIAL = SpecialTokens(BOS, EOS, PAD, (PAD, BOS, EOS))


class Listed(Documents):
    """Documents of a list."""

    def __init__(self, documents: list[Any]) -> None:
        self.documents = documents

    def read(self, cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        for number, document in enumerate(self.documents[cursor or 0 :], cursor or 0):
            yield document if isinstance(document, str) else np.array(document, np.uint16), number + 1

    def fingerprint(self) -> dict[str, Any]:
        return {}


def packer(documents: list[Any], length: int = 8, share: float = 0.0, evaluation: bool = False) -> Packer:
    return Packer(Listed(documents), data_cases.tokenizer(), SPECIAL, length, share, evaluation)


def rest_of(source: Packer) -> list[list[int]]:
    found = []
    while (sequence := source.next()) is not None:
        found.append(sequence.tolist())
    return found


DOCUMENTS = st.lists(
    st.one_of(st.text(data_cases.LETTERS, max_size=30), st.lists(st.integers(3, 46), max_size=30)), max_size=20
)


@given(DOCUMENTS, st.integers(2, 20))
@settings(deadline=None)
def test_sequences_are_the_documents_end_to_end(documents: list[Any], length: int) -> None:
    source = packer(documents, length)
    sequences = rest_of(source)
    assert all(len(sequence) == length and sequence[0] == BOS for sequence in sequences)
    found = [i for sequence in sequences for i in sequence[1:]]
    expected: list[int] = []
    for document in documents:
        ids = [3 + data_cases.LETTERS.index(letter) for letter in document] if isinstance(document, str) else document
        expected += [*ids, EOS] if ids else []
    assert found == expected[: len(found)]
    assert len(expected) - len(found) < length - 1
    assert source.rest[1:].tolist() == expected[len(found) :]


@given(DOCUMENTS, st.integers(2, 12), st.sampled_from([0.0, 0.3]))
@settings(deadline=None, max_examples=40)
def test_a_packer_goes_on_from_every_state(documents: list[Any], length: int, share: float) -> None:
    source = packer(documents, length, share)
    states = [source.state()]
    whole = []
    while (sequence := source.next()) is not None:
        whole.append(sequence.tolist())
        states.append(source.state())
    states.append(source.state())
    for number, state in enumerate(states):
        fresh = packer(documents, length, share)
        fresh.restore(json.loads(json.dumps(state)))
        assert rest_of(fresh) == whole[number:]
    source.rewind()
    assert rest_of(source) == whole


def test_documents_are_tokenised_in_chunks_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = data_cases.texts(50)
    whole = rest_of(packer(documents))
    monkeypatch.setattr(packing, "DOCUMENTS_AT_A_TIME", 3)
    assert rest_of(packer(documents)) == whole
    monkeypatch.setattr(packing, "CHARACTERS_AT_A_TIME", 1)
    assert rest_of(packer(documents)) == whole


@given(st.floats(1e-4, 0.5), st.integers(1, 3000))
def test_the_share_kept_for_evaluation_is_evenly_spread(share: float, n: int) -> None:
    kept = [number for number in range(n) if is_held_out(number, share)]
    assert kept[0] == 0
    assert abs(len(kept) - n * share) <= 1
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert all(1 / share - 1 <= gap <= 1 / share + 1 for gap in gaps)


@given(st.floats(0.01, 0.5), st.integers(2, 100))
@settings(deadline=None)
def test_training_and_evaluation_share_no_document(share: float, n: int) -> None:
    documents = [[3 + number % 40, 3 + number // 40] for number in range(n)]
    kept = [rest_of(packer(documents, 4, share, evaluation)) for evaluation in (False, True)]
    seen = [{tuple(sequence[1:3]) for sequence in sequences} for sequences in kept]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {tuple(document) for document in documents}


def test_padding_behind_a_row_of_ids_is_cut_and_an_end_is_not_doubled() -> None:
    documents = [[7, 8, PAD, PAD], [PAD, PAD], [9, EOS], [BOS, 10]]
    assert rest_of(packer(documents, 9)) == [[BOS, 7, 8, EOS, 9, EOS, BOS, 10, EOS]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, (BOS, EOS)),
        ({"eos_token": "</s>"}, (EOS, EOS)),
        ({"pad_token": "<pad>", "eos_token": "</s>"}, (PAD, EOS)),
        ({"bos_token": "<s>"}, (BOS, BOS)),
        ({}, (None, None)),
    ],
    ids=["bos and eos", "eos", "pad and eos", "bos", "none"],
)
def test_sequences_begin_as_prompts_do(names: dict[str, str], expected: tuple[int | None, int | None]) -> None:
    from transformers import PreTrainedTokenizerFast

    from circuit_tracer.models.tokenization import tokenize

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=data_cases.tokenizer().backend_tokenizer, **names)
    special = SpecialTokens.of(tokenizer)
    assert (special.first, special.end) == expected
    sequence = Packer(Listed(["abc"]), tokenizer, special, 4 if names else 3, 0.0).next()
    assert sequence is not None
    assert sequence.tolist() == tokenize("abc", tokenizer).tolist()[:4]
    assert set(special.dropped) == {i for i in (expected[0], expected[1], tokenizer.pad_token_id) if i is not None}


def test_without_a_tokenizer_there_are_only_token_files() -> None:
    special = SpecialTokens.of(None)
    assert Packer(Listed([[5, 6], [7, 8]]), None, special, 4, 0.0).next().tolist() == [5, 6, 7, 8]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"text needs a tokenizer.*data\.kind tokens"):
        Packer(Listed(["ab"]), None, special, 4, 0.0).next()


def test_data_that_shrank_are_noticed() -> None:
    source = packer(["a" * 30])
    source.next()
    shorter = packer(["a"])
    with pytest.raises(InputError, match="the data have changed"):
        shorter.restore(source.state())


def test_no_sequence_has_its_length_in_doubt() -> None:
    special = replace(SPECIAL, first=None)
    source = Packer(Listed(["abcdefgh"]), data_cases.tokenizer(), special, 4, 0.0)
    assert [len(sequence) for sequence in rest_of(source)] == [4, 4]
