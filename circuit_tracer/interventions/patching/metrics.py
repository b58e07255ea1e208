"""What a patched run is judged by: a number for each row of logits at the last position.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import single_token, token_strings

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@dataclass(frozen=True)
class Metric:
    """A name and a differentiable function of logits (B, V) -> (B,).

    Attributes:
        label: Its name.
        of: From logits (B, V) to values (B,).
    """

    label: str
    of: Callable[[Tensor], Tensor]


def logit_difference(model: Traceable, token: str | int, other: str | int) -> Metric:
    """logit(token) - logit(other); tokens by text or id.

    Args:
        model: Whose tokenizer reads the tokens.
        token: The token, by text or id.
        other: The one that is subtracted.

    Returns:
        The metric.
    """
    first, second = token_id(model, token), token_id(model, other)
    if first == second:
        raise InputError(f"the logit difference of token {first} with itself is 0; name two tokens")
    label = f"logit of {_text(model, first)!r} minus {_text(model, second)!r}"
    return Metric(label, lambda logits: logits[:, first] - logits[:, second])


def probability(model: Traceable, token: str | int) -> Metric:
    """Probability of a token.

    Args:
        model: Whose tokenizer reads the token.
        token: The token, by text or id.

    Returns:
        The metric.
    """
    wanted = token_id(model, token)
    return Metric(f"probability of {_text(model, wanted)!r}", lambda logits: torch.softmax(logits, dim=-1)[:, wanted])


def log_probability(model: Traceable, token: str | int) -> Metric:
    """Natural logarithm of the probability of a token.

    Args:
        model: Whose tokenizer reads the token.
        token: The token, by text or id.

    Returns:
        The metric.
    """
    wanted = token_id(model, token)
    label = f"log-probability of {_text(model, wanted)!r}"
    return Metric(label, lambda logits: torch.log_softmax(logits, dim=-1)[:, wanted])


def token_id(model: Traceable, token: str | int) -> int:
    """The id of a token, given by id or by a text that is exactly one token; InputError otherwise."""
    vocabulary = model.parts.config.d_vocab
    if isinstance(token, int):
        if not 0 <= token < vocabulary:
            raise InputError(f"token id {token} is outside the vocabulary 0..{vocabulary - 1}")
        return token
    return single_token(token, model.tokenizer)


@plain_torch()
def _text(model: Traceable, token: int) -> str:
    return token_strings(torch.tensor([token]), model.tokenizer)[0]
