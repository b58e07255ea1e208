"""What a probe says of texts, and, where they have labels, how often it is right; nothing is learned.

Letters: N rows (tokens, or texts), B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from circuit_tracer.arguments import require_seed, typed
from circuit_tracer.classify.folds import Array, group_draws
from circuit_tracer.errors import InputError
from circuit_tracer.probes.compare import draws_of
from circuit_tracer.probes.evaluate import Share, auc_share, f1, plain, rows_within, share, span_hits
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Scored, Subject, score_texts, tokens_of
from circuit_tracer.probes.table import groups_of
from circuit_tracer.progress import Progress, silent


@dataclass(frozen=True)
class Report:
    """Of labelled texts, at the probe's own threshold.

    Attributes:
        rows: "tokens" or "texts".
        auc: nan for one class alone.
        recall: Of positive rows.
        false: Of the others.
        f1: None without spans.
        f1_spans: None without spans.
    """

    rows: str
    positive: int
    negative: int
    groups: int
    auc: Share
    recall: Share
    false: Share
    f1: float | None = None
    f1_spans: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def lines(self) -> list[str]:
        """For people."""

        def said(name: str, each: Share) -> str:
            return f"{name:12}{each.value:.3f}  {each.low:.3f}..{each.high:.3f}"

        lines = [
            f"{'rows':12}{self.positive} positive and {self.negative} negative {self.rows}, {self.groups} groups",
            said("AUC", self.auc),
            said("recall", self.recall),
            said("false", self.false),
        ]
        if self.f1 is not None and self.f1_spans is not None:
            lines += [f"{'F1 tokens':12}{self.f1:.3f}", f"{'F1 spans':12}{self.f1_spans:.3f}"]
        return lines


@dataclass(frozen=True)
class Scoring:
    """What a probe says of texts.

    Attributes:
        texts: In the order of the examples.
        report: None unless all of them have labels.
    """

    probe: Probe
    texts: list[Scored]
    report: Report | None

    def alarms(self, number: int) -> list[int]:
        """Positions of the tokens of a text that fire."""
        return torch.nonzero(self.probe.fires(self.texts[number].tokens)).flatten().tolist()


@typed
def score(
    model: Any,
    probe: Probe,
    examples: Sequence[Example],
    *,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Scoring:
    """Scores of every text, and a report if they have labels.

    Args:
        model: As `Subject.of` takes it.
        probe: The probe.
        examples: Texts, with labels or without.
        draws: Of the bootstrap over groups.
        seed: Of the bootstrap.
        progress: Called with (stage, done, total).

    Returns:
        The scores, and a report if there are labels.

    Raises:
        CompatibilityError: For a probe of another model or dictionary.
        InputError: For texts that cannot be read.
    """
    require_seed(seed)
    if draws < 1:
        raise InputError(f"draws is {draws}; at least 1 is needed")
    if not examples:
        raise InputError("there is no text to score")
    subject = Subject.of(model)
    texts = [tokens_of(example, subject) for example in examples]
    found: dict[int, Scored] = {}
    for number, each in score_texts(subject, probe, texts):
        found[number] = each
        progress("scoring", len(found), len(texts))
    in_order = [found[number] for number in range(len(texts))]
    labelled = all(example.label is not None for example in examples)
    return Scoring(probe, in_order, _report(probe, examples, in_order, draws, seed) if labelled else None)


def _report(probe: Probe, examples: Sequence[Example], texts: list[Scored], draws: int, seed: int) -> Report:
    spanned = probe.pool == "token"
    if spanned:
        at = [np.flatnonzero(each.text.counted) for each in texts]
        score_N = np.concatenate([each.tokens.double().numpy()[rows] for each, rows in zip(texts, at, strict=True)])
        positive_N = np.concatenate(
            [_positive(example, each)[rows] for example, each, rows in zip(examples, texts, at, strict=True)]
        )
        text_N = np.repeat(np.arange(len(texts)), [len(rows) for rows in at])
    else:
        score_N = np.array([each.score for each in texts])
        positive_N, text_N = np.array([bool(example.label) for example in examples]), np.arange(len(texts))
    group_N = groups_of(examples)[text_N]
    weight_BN = group_draws(group_N, draws_of(draws, len(score_N)), seed)
    fires_N, whole = score_N > probe.threshold, np.zeros(len(score_N), int)
    both = positive_N.any() and not positive_N.all()
    found = Report(
        rows="tokens" if spanned else "texts",
        positive=int(positive_N.sum()),
        negative=int((~positive_N).sum()),
        groups=len(np.unique(group_N)),
        auc=auc_share(score_N, positive_N, whole, weight_BN) if both else Share.unknown(),
        recall=share(fires_N, positive_N, weight_BN, 1),
        false=share(fires_N, ~positive_N, weight_BN, 1),
    )
    if not spanned or not any(example.spans for example in examples):
        return found
    right = int((fires_N & positive_N).sum())
    total = np.zeros(4, int)
    for number, (example, each, rows) in enumerate(zip(examples, texts, at, strict=True)):
        inside = rows_within(each.text, example.spans or (), rows)
        total += span_hits(fires_N[text_N == number], inside, rows)
    tokens = f1(int(fires_N.sum()), int(positive_N.sum()), right, right)
    return Report(**{**vars(found), "f1": tokens, "f1_spans": f1(*total.tolist())})


def _positive(example: Example, found: Scored) -> Array:
    if example.spans is not None:
        return found.text.within(example.spans)
    return np.full(len(found.text.ids), bool(example.label))
