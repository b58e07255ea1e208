"""A word-level tokenizer over the world's vocabulary: every word is one token, and so is every name ("New York City").

Whitespace separates and is dropped; a sentence may begin with "The". A prompt gets the beginning-of-sequence token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.demo import world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, UNKNOWN, PADDING = "<s>", "</s>", "<unk>", "<pad>"
SPECIAL = (PADDING, BOS, EOS, UNKNOWN)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the demo world, BOS added in front of every text. Ids: the special tokens, then words sorted."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate((*SPECIAL, *world.vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"^\s*The\b"), "the"), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    # Longest names first, so that "Jackson Hole" is not read as "Jackson"; a name ends where a word ends.
    names = sorted((word for word in world.vocabulary() if " " in word), key=lambda word: (-len(word), word))
    pattern = "|".join([rf"\b(?:{'|'.join(re.escape(name) for name in names)})\b", r"[\w'-]+", r"[^\s\w]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, words[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write tokenizer.json and tokenizer_config.json into ``folder``."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer
