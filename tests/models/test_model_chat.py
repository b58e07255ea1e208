"""Conversations: what a template refuses or does not know is said, and text parts are text."""

from __future__ import annotations

from typing import Any

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.models.chat import chat_ids, chat_text

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
)
THINKING = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<quiet>{% endif %}"
USER = [{"role": "user", "content": "hi"}]


def tokenizer(template: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"<{each}>": i for i, each in enumerate(("unk", "bos", "quiet"))} | {"hi": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>")
    fast.chat_template = template
    return fast


REFUSED: dict[str, tuple[str, Any, str]] = {
    "a role that the template refuses": (
        NO_SYSTEM,
        [{"role": "system", "content": "x"}, *USER],
        "System role not supp",
    ),
    "what is not there": ("{{ messages[0].nope.nope }}", USER, r"refuses.*\['user'\].*nope"),
    "a template that is none": ("{% for %}", USER, "refuses"),
    "arithmetic with texts": ("{{ messages[0].content + 1 }}", USER, "refuses"),
    "a text": (TURNS, "hi", "list of.*got 'hi'"),
    "no message": (TURNS, [], "list of"),
    "one message": (TURNS, USER[0], "list of"),
    "no role": (TURNS, [{"content": "hi"}], "with a role"),
    "no content": (TURNS, [{"role": "user"}], "no content"),
    "content of another type": (TURNS, [{"role": "user", "content": 5}], "must be text"),
    "a picture": (TURNS, [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "only text can be traced"),
    "a part without text": (TURNS, [{"role": "user", "content": [{"type": "text"}]}], "only text can be traced"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_conversation_is_said(case: str) -> None:
    template, messages, expected = REFUSED[case]
    with pytest.raises(InputError, match=expected):
        chat_ids(messages, tokenizer(template))


def test_arguments_reach_the_template_and_unknown_ones_are_said() -> None:
    assert chat_text(USER, tokenizer(THINKING)) == "<user>hi"
    assert chat_text(USER, tokenizer(THINKING), enable_thinking=False) == "<user>hi<quiet>"
    with pytest.warns(UserWarning, match="knows no argument 'enable_thinkin'"):
        assert chat_text(USER, tokenizer(THINKING), enable_thinkin=False) == "<user>hi"
    with pytest.warns(UserWarning, match="knows no argument 'enable_thinking'"):
        assert chat_text(USER, tokenizer(TURNS), enable_thinking=False) == "<user>hi"


def test_parts_that_are_text_are_joined() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert chat_text([{"role": "user", "content": parts}], tokenizer(TURNS)) == "<user>hi"


def test_a_special_token_in_front_can_be_left_out() -> None:
    bare = tokenizer("{{ messages[0].content }}")
    assert chat_ids(USER, bare).tolist() == [1, 3]
    assert chat_ids(USER, bare, prepend_bos=False).tolist() == [3]


@pytest.mark.parametrize("name", ["padding", "max_length", "truncation"])
def test_what_is_about_tokens_is_no_argument_of_a_template(name: str) -> None:
    with pytest.warns(UserWarning, match=f"knows no argument '{name}'"):
        assert chat_text(USER, tokenizer(TURNS), **{name: 3}) == "<user>hi"


def test_a_comment_of_the_template_knows_no_argument() -> None:
    with pytest.warns(UserWarning, match="knows no argument 'enable_thinking'"):
        chat_text(USER, tokenizer("{# enable_thinking #}" + TURNS), enable_thinking=False)
    assert chat_text(USER, tokenizer(TURNS), chat_template=THINKING, enable_thinking=False) == "<user>hi<quiet>"


def test_a_message_of_tool_calls_needs_no_content() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    shows = TURNS + "{{ messages[1].tool_calls[0].function.name }}"
    assert chat_text([*USER, called], tokenizer(shows)).endswith("add")
