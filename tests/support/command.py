"""What the tests of the command line share: tiny folders on disk, and the outcome of a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny import SIZES

TEXT = "the capital of Texas is Austin Dallas state containing France Paris a"
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *TEXT.split()]
CHAT_TEMPLATE = "{% for m in messages %}{{ 'the' if m['role'] == 'user' else 'a' }} {{ m['content'] }} {% endfor %}"


@dataclass(frozen=True)
class Folders:
    """Paths of a tiny Llama in float32 and of a cross-layer transcoder that fits it."""

    model: str
    transcoder: str


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The first line of standard output as JSON."""
        return json.loads(self.out.splitlines()[0])


Run = Callable[..., Outcome]


def save_tokenizer(folder: Path) -> None:
    """A word-level tokenizer with the ids of the tiny models; filler words make up the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *(f"w{i}" for i in range(SIZES["vocab_size"] - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def save_folders(root: Path) -> Folders:
    """A tiny Llama with its tokenizer, and a cross-layer transcoder, as folders."""
    import torch

    from circuit_tracer.transcoders import save_transcoders
    from tests.support.tiny import tiny_model, tiny_transcoder

    model, transcoder = root / "model", root / "transcoder"
    tiny_model("llama", torch.float32).save_pretrained(model)
    save_tokenizer(model)
    save_transcoders(tiny_transcoder("clt", torch.float32), transcoder, str(model))
    return Folders(str(model), str(transcoder))
