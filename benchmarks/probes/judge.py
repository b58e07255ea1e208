"""The same model asked outright: a prompt with the text, and the odds of yes against no as its score.

The prompt is a conversation where the model has a chat template. The cost is that of a forward pass over text and prompt, with
the logits of its last token. Letters: B texts, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

QUESTIONS = {
    "personal": "Does the following text contain personal data of a person (a name, an address, a phone number or an e-mail "
    "address)? Answer with yes or no.\n\nText: {}",
    "false": "Is the following statement false? Answer with yes or no.\n\nStatement: {}",
    "wrong": "Would you give a wrong answer if you had to complete the following? Answer with yes or no.\n\n{}",
}
BATCH = 16


@torch.no_grad()
def judged(model: Any, tokenizer: Any, texts: Sequence[str], question: str) -> list[float]:
    """log p(yes) - log p(no) behind the question about each text; QUESTIONS names the questions."""
    rows = [asked(tokenizer, text, question) for text in texts]
    yes, no = (_first(tokenizer, words) for words in (("Yes", "yes"), ("No", "no")))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    found: dict[int, float] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = len(rows[chosen[-1]])
        ids_BP = torch.tensor([rows[row] + [rows[row][-1]] * (width - len(rows[row])) for row in chosen])
        hidden_BPD = model.base_model(input_ids=ids_BP, use_cache=False).last_hidden_state
        last_BD = hidden_BPD[torch.arange(len(chosen)), torch.tensor([len(rows[row]) - 1 for row in chosen])]
        logits_BV = model.lm_head(last_BD).float()
        odds_B = logits_BV[:, yes].logsumexp(1) - logits_BV[:, no].logsumexp(1)
        found |= dict(zip(chosen, odds_B.tolist(), strict=True))
    return [found[row] for row in range(len(rows))]


def asked(tokenizer: Any, text: str, question: str) -> list[int]:
    """Ids of the question about a text."""
    words = QUESTIONS[question].format(text)
    if tokenizer.chat_template is None:
        return list(tokenizer(f"{words}\nAnswer:").input_ids)
    chat = [{"role": "user", "content": words}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def _first(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """First tokens of the words, with and without a space in front."""
    forms = [form for word in words for form in (word, f" {word}")]
    return sorted({tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms})
