"""Files of examples, and which tokens a span is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from circuit_tracer.demo.tokenizer import build_tokenizer
from circuit_tracer.errors import CircuitTracerError, CompatibilityError, InputError
from circuit_tracer.models.parts import bind
from circuit_tracer.probes.examples import Example, read_examples, require_fit
from circuit_tracer.probes.reading import Subject, tokens_of
from circuit_tracer.probes.table import gather
from tests.support.tiny import tiny_model


def written(folder: Path, *records: Any) -> Path:
    path = folder / "e.jsonl"
    path.write_text(
        "\n".join(each if isinstance(each, str) else json.dumps(each) for each in records), encoding="utf-8"
    )
    return path


def test_what_lines_say(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"text": "a b", "label": 1, "group": 7, "note": "kept out"},
        "",
        {"messages": [{"role": "user", "content": "q"}], "label": False},
        {"text": "c", "spans": []},
        {"text": "naïve 東京", "spans": [[6, 8], {"start": 0, "end": 5, "kind": "x"}], "label": "true"},
        {"text": "d", "label": 0.0},
    )
    first, second, third, fourth, fifth = read_examples(path)
    assert (first.text, first.label, first.group) == ("a b", True, "7")
    assert (second.messages, second.label, second.group) == ([{"role": "user", "content": "q"}], False, None)
    assert (third.spans, third.label) == ((), False)
    assert (fourth.spans, fourth.label) == (((0, 5), (6, 8)), True)
    assert fifth.label is False
    assert fourth.where.endswith("line 5")


def test_labels_of_any_name_and_files_of_one_class(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a", "label": "lie"}, {"text": "b", "label": "truth"})
    assert [each.label for each in read_examples(path, "lie")] == [True, False]
    with pytest.raises(InputError, match="say which of them"):
        read_examples(path)
    assert [each.label for each in read_examples(written(tmp_path, {"text": "a", "label": 0}))] == [False]
    assert read_examples(written(tmp_path, {"text": "a"}), labelled=False)[0].label is None


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "line 1"),
    "no object": ([1], r"line 1 is \[1\]; expected an object"),
    "nothing to read": ({"label": 1}, "line 1 has neither text nor messages"),
    "two things to read": ({"text": "a", "messages": [{"role": "user"}]}, "line 1 has both"),
    "no text": ({"text": " \n", "label": 1}, "expected text that is not empty"),
    "text that is none": ({"text": 3, "label": 1}, "text is 3"),
    "messages without roles": ({"messages": ["a"], "label": 1}, "messages is .'a'"),
    "label": ({"text": "a", "label": [1]}, r"label is \[1\]"),
    "no label": ({"text": "a"}, "neither label nor spans"),
    "NaN": ('{"text": "a", "label": NaN}', "line 1"),
    "group": ({"text": "a", "label": 1, "group": True}, "group is True"),
    "spans that are none": ({"text": "a", "spans": 1}, "spans is 1"),
    "span of a word": ({"text": "a", "spans": [["0", 1]]}, "a span is .'0', 1."),
    "span beyond": (
        {"text": "東京", "spans": [[0, 6]]},
        r"\[0, 6\] is not within the text, which has characters 0 to 2",
    ),
    "span that is empty": ({"text": "ab", "spans": [[1, 1]]}, r"\[1, 1\] is not within"),
    "spans over each other": ({"text": "abcd", "spans": [[0, 3], [2, 4]]}, r"\[2, 4\] lies over"),
    "spans of messages": ({"messages": [{"role": "user"}], "spans": [[0, 1]]}, "spans of messages"),
    "positive without spans": ({"text": "ab", "label": 1, "spans": []}, "label 1 and 0 spans"),
    "negative with spans": ({"text": "ab", "label": 0, "spans": [[0, 1]]}, "label 0 and 1 spans"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_line_says_wrong_names_it(tmp_path: Path, name: str) -> None:
    record, message = BAD[name]
    with pytest.raises(CircuitTracerError, match=message):
        read_examples(written(tmp_path, record))


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no examples"):
        read_examples(written(tmp_path, "", ""))
    with pytest.raises(InputError, match="no file at"):
        read_examples(tmp_path / "none.jsonl")


UNFIT: dict[str, tuple[list[Example], str]] = {
    "twice": ([Example("a", label=True), Example("a", label=True)], "have one text"),
    "twice in different groups": ([Example("a", group="x"), Example("a", group="y")], "have one text"),
    "two labels": ([Example("a", label=True, group="x"), Example("a", label=False, group="x")], "different things"),
    "spans here and there": ([Example("a", label=True, spans=((0, 1),)), Example("b", label=True)], "without spans"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_held_apart_is_refused(name: str) -> None:
    examples, message = UNFIT[name]
    with pytest.raises(InputError, match=message):
        require_fit(examples)
    require_fit([Example("a", label=True, group="x"), Example("a", label=True, group="x"), Example("b", label=False)])


# ---- spans


def subject(tokenizer: Any) -> Subject:
    return Subject(bind(tiny_model("llama", vocab_size=len(tokenizer), dtype=torch.float32), "tiny"), tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """A BPE tokenizer without merges but one: every byte is a token."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [" is"] * 3, vocab_size=259, min_frequency=2, special_tokens=["<s>"], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>")


def pieces(text: str, spans: list[tuple[int, int]], reader: Subject) -> list[str]:
    found = tokens_of(text, reader)
    return [text[found.start[at] : found.stop[at]] for at in np.flatnonzero(found.within(spans))]


def test_spans_of_characters_of_several_bytes() -> None:
    reader, text = subject(byte_level()), "Zoë is 東京  👩 ok"
    assert len(tokens_of(text, reader).ids) > len(text)
    assert pieces(text, [(0, 3)], reader) == ["Z", "o", "ë", "ë"]
    assert pieces(text, [(7, 9)], reader) == ["東"] * 3 + ["京"] * 3
    assert pieces(text, [(11, 12)], reader) == ["👩"] * 4
    assert pieces(text, [(3, 7)], reader) == ["", "is", ""] or pieces(text, [(4, 6)], reader) == ["is"]
    assert not tokens_of(text, reader).counted[0]


def test_spans_of_words_leave_the_space_in_front_out() -> None:
    reader = subject(byte_level())
    assert pieces("a is", [(2, 4)], reader) == ["is"]
    assert pieces("a is", [(0, 2)], reader) == ["a"]  # the space behind it is no part of the next word


def test_spans_of_the_demo_s_words() -> None:
    reader = subject(build_tokenizer())
    text = "the capital of New York City is"
    assert pieces(text, [(19, 23)], reader) == ["New York City"]
    assert pieces(text, [(4, 11), (29, 31)], reader) == ["capital", "is"]


def test_spans_that_no_token_is() -> None:
    reader = subject(build_tokenizer())
    with pytest.raises(InputError, match="no token that is read lies in the span"):
        gather(
            reader,
            [Example("Dallas is", label=True, spans=((6, 7),))],
            ("hook_resid_post", 1),
            (),
            "token",
            baselines=False,
        )
    with pytest.raises(InputError, match="use pool 'token'"):
        gather(
            reader,
            [Example("Dallas is", label=True, spans=((0, 6),))],
            ("hook_resid_post", 1),
            (),
            "last",
            baselines=False,
        )


def test_texts_that_cannot_be_read() -> None:
    reader = subject(byte_level())
    with pytest.raises(InputError, match=r"e\.jsonl, line 3.*context length is 64"):
        tokens_of(Example("a" * 80, where="e.jsonl, line 3"), reader)
    with pytest.raises(InputError, match=r"e\.jsonl, line 4: this tokenizer has no chat template"):
        tokens_of(Example(messages=[{"role": "user", "content": "a"}], where="e.jsonl, line 4"), reader)
    alone = Subject(reader.parts, reader.tokenizer, prepend_bos=False)
    with pytest.raises(InputError, match="1 token, of which none is read"):
        tokens_of("a", alone)
    with pytest.raises(CompatibilityError, match="fast tokenizer"):
        tokens_of("a", Subject(reader.parts, _Slow()))


class _Slow:
    """A tokenizer without offsets, as those written in Python are."""

    bos_token_id, pad_token_id, eos_token_id = 1, None, None
    all_special_ids = (1,)

    def __call__(self, text: str, **_: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[5] * len(text))
