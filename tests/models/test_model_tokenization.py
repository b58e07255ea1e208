"""One rule from prompt to ids, whatever form the prompt has."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import InputError
from circuit_tracer.models.chat import chat_ids
from circuit_tracer.models.tokenization import (
    GEMMA3_CHAT_PREFIX,
    special_ids,
    token_strings,
    tokenize,
    zero_positions,
)
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder


class Letters:
    """A tokenizer of letters: a is 10, b is 11, ...; special ids as asked for."""

    chat_template: str | None = None

    def __init__(
        self, bos: int | None = None, pad: int | None = None, eos: int | None = None, others: tuple[int, ...] = ()
    ) -> None:
        self.bos_token_id, self.pad_token_id, self.eos_token_id = bos, pad, eos
        self.all_special_ids = [i for i in (bos, pad, eos) if i is not None] + list(others)

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        assert not add_special_tokens, "special tokens are ours to add"
        return SimpleNamespace(input_ids=[ord(letter) - ord("a") + 10 for letter in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i - 10 + ord("a")) if i >= 10 else f"<{i}>" for i in ids)

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return "".join(message["content"] for message in messages) + "z" * add_generation_prompt


PREFIX: dict[str, tuple[Letters, int]] = {
    "bos first": (Letters(bos=1, pad=2, eos=3), 1),
    "pad without bos": (Letters(pad=2, eos=3), 2),
    "eos alone": (Letters(eos=3), 3),
    "any other special": (Letters(others=(7, 5)), 7),
    "bos is 0": (Letters(bos=0, eos=0), 0),
    "eos is 0": (Letters(eos=0), 0),
}


@pytest.mark.parametrize(("tokenizer", "first"), PREFIX.values(), ids=PREFIX)
def test_the_first_usable_special_token_is_put_in_front(tokenizer: Letters, first: int) -> None:
    for prompt in ("abc", [10, 11, 12], torch.tensor([10, 11, 12]), (10, 11, 12)):
        assert tokenize(prompt, tokenizer).tolist() == [first, 10, 11, 12]


@pytest.mark.parametrize("special", [1, 2, 3, 7, 0])
def test_a_prompt_that_starts_with_any_special_token_is_left_alone(special: int) -> None:
    tokenizer = Letters(bos=1, pad=2, eos=3, others=(7, 0))
    assert tokenize([special, 10], tokenizer).tolist() == [special, 10]


def test_a_tokenizer_without_special_tokens_adds_none() -> None:
    assert tokenize("ab", Letters()).tolist() == [10, 11]


def test_without_tokenizer_ids_are_taken_as_they_are() -> None:
    assert tokenize([0, 5], None).tolist() == [0, 5]
    with pytest.raises(InputError, match=r"no tokenizer.*token ids"):
        tokenize("ab", None)


@pytest.mark.parametrize(
    "prompt",
    [[1, 10], (1, 10), torch.tensor([1, 10]), torch.tensor([[1, 10]]), torch.tensor([1, 10], dtype=torch.int32), [[1, 10]]],
    ids=["list", "tuple", "tensor", "1xP", "int32", "nested list"],
)  # fmt: skip
def test_forms_of_ids_are_equivalent(prompt: Any) -> None:
    ids = tokenize(prompt, Letters(bos=1))
    assert ids.tolist() == [1, 10]
    assert ids.dtype == torch.int64
    assert ids.device.type == "cpu"


BAD: dict[str, tuple[Any, str]] = {
    "two prompts": (torch.ones(2, 3, dtype=torch.int64), r"shape \(2, 3\).*one by one"),
    "three axes": (torch.ones(1, 1, 3, dtype=torch.int64), r"shape \(1, 1, 3\)"),
    "a number": (torch.tensor(3), r"shape \(\)"),
    "fractions": (torch.tensor([1.0, 2.0]), "float32"),
    "truth values": (torch.tensor([True, False]), "bool"),
}


@pytest.mark.parametrize(("prompt", "message"), BAD.values(), ids=BAD)
def test_oddly_shaped_ids_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenize(prompt, Letters(bos=1))


BAD_LISTS: dict[str, Any] = {
    "list of words": ["the", "cat"],
    "uneven lists": [[1, 2], [3]],
    "nothing": None,
    "a dict": {"input_ids": [1, 2]},
}


@pytest.mark.parametrize("prompt", BAD_LISTS.values(), ids=BAD_LISTS)
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(InputError, match=r"text or|token ids"):
        tokenize(prompt, Letters(bos=1))


@pytest.mark.parametrize("prompt", ["", [], torch.tensor([], dtype=torch.int64)], ids=["text", "list", "tensor"])
def test_an_empty_prompt_is_only_its_special_token_and_cannot_be_traced(prompt: Any) -> None:
    assert tokenize(prompt, Letters(bos=1)).tolist() == [1]
    model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), Letters(bos=1), "llama")
    with pytest.raises(InputError, match="prompt has 1 token"):
        attribute(prompt, model)


def test_text_and_its_ids_give_the_same_graph() -> None:
    model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), Letters(bos=1), "llama")
    text, ids = attribute("abc", model), attribute([10, 11, 12], model)
    assert text.input_tokens.tolist() == ids.input_tokens.tolist() == [1, 10, 11, 12]
    assert torch.equal(text.adjacency_matrix, ids.adjacency_matrix)
    assert text.token_strings == ["<1>", "a", "b", "c"]
    assert text.input_string == "<1>abc"


def test_special_ids_are_listed_once_best_first() -> None:
    assert special_ids(Letters(bos=4, pad=2, eos=4, others=(9, 2))) == [4, 2, 9]


def test_token_strings_without_tokenizer() -> None:
    assert token_strings(torch.tensor([0, 5]), None) == ["<0>", "<5>"]


def test_chat_messages_go_through_the_template() -> None:
    tokenizer = Letters(bos=1)
    messages = [{"role": "user", "content": "ab"}]
    with pytest.raises(InputError, match="no chat template"):
        chat_ids(messages, tokenizer)
    tokenizer.chat_template = "whatever"
    assert chat_ids(messages, tokenizer).tolist() == [1, 10, 11, 35]
    assert chat_ids(messages, tokenizer, add_generation_prompt=False).tolist() == [1, 10, 11]


def gemma_tokenizer(*words: str) -> Any:
    """A tokenizer that knows these words, each of them a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<bos>", *words]
    found = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    special = {
        "bos_token": "<bos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": [*words[:1]],
    }
    return PreTrainedTokenizerFast(tokenizer_object=found, **special)


def test_position_0_is_left_out() -> None:
    prefix = torch.tensor([*GEMMA3_CHAT_PREFIX, 9])
    assert zero_positions(torch.tensor([1, 5, 6]), None, "llama") == [0]
    assert zero_positions(prefix, None, "gemma2") == [0]
    assert zero_positions(torch.tensor([2, 5, 6]), None, "gemma3_text") == [0]
    assert zero_positions(torch.tensor([2, 105, 2364]), None, "gemma3_text") == [0]


@pytest.mark.parametrize("name", ["google/gemma-3-1b-it", "my-finetune", "google/gemma-3-270m"])
def test_the_chat_prefix_of_gemma_3_is_left_out_whatever_the_model_is_called(name: str) -> None:
    model = ReplacementModel.from_model(tiny_model("gemma3", vocab_size=2400), tiny_transcoder(), None, name)
    chat = attribute([*GEMMA3_CHAT_PREFIX, 9, 7], model)
    assert chat.active_features[:, 1].min() == 4
    plain = attribute([2, 5, 6, 7, 8, 9], model)
    assert plain.active_features[:, 1].min() == 1
    chosen = attribute([*GEMMA3_CHAT_PREFIX, 9, 7], model, zero_positions=[0])
    assert chosen.active_features[:, 1].min() == 1


def test_a_name_alone_leaves_nothing_out() -> None:
    model = ReplacementModel.from_model(
        tiny_model("llama", vocab_size=2400), tiny_transcoder(), None, "tuned-gemma-3-it"
    )
    assert attribute([*GEMMA3_CHAT_PREFIX, 9, 7], model).active_features[:, 1].min() == 1


def test_the_chat_prefix_is_the_tokenizers() -> None:
    tokenizer = gemma_tokenizer("<start_of_turn>", "user", "\n", "hello")
    ids = torch.tensor(tokenizer("<bos><start_of_turn>user\nhello", add_special_tokens=False).input_ids)
    assert ids.tolist() == [2, 3, 4, 5, 6]
    assert zero_positions(ids, tokenizer, "gemma3_text") == [0, 1, 2, 3]
    other = gemma_tokenizer("<turn>", "user", "\n", "hello")
    assert zero_positions(torch.tensor([2, 105, 2364, 107, 3]), other, "gemma3_text") == [0]


class Counted(Letters):
    """A tokenizer that counts what it decodes, and can get more tokens."""

    def __init__(self, size: int) -> None:
        self.size, self.decoded = size, 0

    def __len__(self) -> int:
        return self.size

    def decode(self, ids: Any) -> str:
        self.decoded += 1
        return f"{list(ids)} of {self.size}"


def test_texts_of_tokens_are_made_once_for_a_tokenizer_as_it_is() -> None:
    tokenizer = Counted(50)
    assert token_strings(torch.tensor([3, 4, 3]), tokenizer) == ["[3] of 50", "[4] of 50", "[3] of 50"]
    assert token_strings(torch.tensor([4]), tokenizer) == ["[4] of 50"]
    assert tokenizer.decoded == 2
    tokenizer.size = 51
    assert token_strings(torch.tensor([4]), tokenizer) == ["[4] of 51"]
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
