"""Which of two labels is the one that is looked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from circuit_tracer.errors import InputError, shortened

YES, NO = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def positive_label(labels: Iterable[str], positive: Any, whose: str) -> str:
    """The label that is looked for: ``positive``, or, if that is None, the true one of true and false, yes and no, 1 and 0.

    whose: who has the labels, for messages. Raises InputError unless there are two at least, that one among them.
    """
    known = sorted(set(labels))
    if positive is None and len(known) == 2:
        wanted = [label for label in known if label.lower() in YES]
        if len(wanted) != 1 or not all(label.lower() in YES | NO for label in known):
            raise InputError(
                f"the label is {' or '.join(map(repr, known))}; say which of them is to be predicted (positive, --positive)"
            )
        positive = wanted[0]
    if str(positive) not in known or len(known) < 2:
        raise InputError(
            f"{whose} have {shortened(', '.join(known)) if known else 'none'}; there must be two values, and "
            f"the one to predict (positive, --positive{'' if positive is None else f': {positive!r}'}) among them"
        )
    return str(positive)
