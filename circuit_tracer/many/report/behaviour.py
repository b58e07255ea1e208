"""What the model does on the rows of a run: how often which answer, by label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuit_tracer.many.report.rates import Mean, Rate

ANSWERS = 5  # most frequent ones that are named


@dataclass(frozen=True)
class Behaviour:
    """Of the rows of a label ("" for all rows). answers: most probable next tokens, the most frequent ones. right: rows whose
    most probable token is the expected answer (None: no row says what is expected). probability: of the most probable token.
    failed: rows that could not be traced, by the type of their error.
    """

    label: str
    rows: int
    answers: list[tuple[str, Rate]]
    right: Rate | None
    probability: Mean
    failed: dict[str, int]


def behaviours(
    table: Sequence[Mapping[str, Any]], labels: Mapping[str, str], expected: Mapping[str, str], seed: int
) -> list[Behaviour]:
    """Of all rows, then of each label, sorted. table: of the run; expected: answers by id, compared without outer spaces."""
    of_label = {"": list(table)}
    for label in sorted(set(labels.values())):
        of_label[label] = [row for row in table if labels.get(row["id"]) == label]
    return [_behaviour(label, rows, expected, seed) for label, rows in of_label.items()]


def _behaviour(label: str, rows: list[Mapping[str, Any]], expected: Mapping[str, str], seed: int) -> Behaviour:
    done = [row for row in rows if row["status"] == "done"]
    told = [row for row in done if row["id"] in expected]
    counts = Counter(row["top_token"] for row in done).most_common(ANSWERS)
    return Behaviour(
        label=label,
        rows=len(rows),
        answers=[(token, Rate.of([row["top_token"] == token for row in done])) for token, _ in counts],
        right=Rate.of([is_right(row, expected) for row in told]) if told else None,
        probability=Mean.of([row["top_probability"] for row in done], seed),
        failed=dict(Counter(row["error_type"] for row in rows if row["status"] == "failed")),
    )


def is_right(row: Mapping[str, Any], expected: Mapping[str, str]) -> bool:
    """Whether the most probable token of a row that is done is the answer expected."""
    return same_answer(row["top_token"], expected[row["id"]])


def same_answer(token: str, expected: str) -> bool:
    """Whether a token is an answer; spaces around either do not count."""
    return token.strip() == expected.strip()


def towards_others(
    table: Sequence[Mapping[str, Any]], labels: Mapping[str, str], expected: Mapping[str, str], label: str
) -> int | None:
    """1 if rows of other labels are more often right than those of this one, -1 if less often, by intervals that do not
    overlap; 0 if neither; None if no row says what is right.
    """
    known = [row for row in table if row["status"] == "done" and row["id"] in expected and row["id"] in labels]
    if not known:
        return None
    mine, others = (
        Rate.of([is_right(row, expected) for row in known if (labels[row["id"]] == label) is same])
        for same in (True, False)
    )
    if mine.low is None or mine.high is None or others.low is None or others.high is None:
        return 0
    return int(others.low > mine.high) - int(others.high < mine.low)
