"""What probes reach, as tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from circuit_tracer.probes.evaluate import AtRate, Scores, Share

WIDTH = 18


def table_lines(scores: Sequence[Scores]) -> list[str]:
    """One line a kind of columns; then what could not be measured, and why."""
    tokens = scores[0].texts is not None
    lines = [f"{'':{WIDTH}}{'columns':>9}  {'AUC':<19}" + "".join(f"{_head(each):<26}" for each in scores[0].at)]
    lines += [_line(each.name, each.columns, each.auc, each.at) for each in scores]
    if tokens:
        lines += ["", "of texts, by their highest token"]
        lines += [
            _line(each.name, None, each.texts_auc, each.texts) for each in scores if each.texts and each.texts_auc
        ]
        lines += ["", f"{'':{WIDTH}}{'F1 tokens':>10}{'F1 spans':>10}"]
        lines += [f"{each.name:{WIDTH}}{_number(each.f1):>10}{_number(each.f1_spans):>10}" for each in scores]
    for what, found in (("rows", scores[0].at), ("texts", scores[0].texts or [])):
        for each in found:
            if not each.measured:
                need = math.ceil(1 / each.rate) - 1
                lines.append(
                    f"recall at {each.rate:.1%} of {what} is not measured: thresholds are set on {each.negatives} negatives in "
                    f"some fold, and {need} are needed"
                )
    lines += ["", f"{'':{WIDTH}}{'cost a token':>26}"]
    return [*lines, *(f"{each.name:{WIDTH}}{1e6 * each.seconds:>23.2f} us" for each in scores)]


def _head(at: AtRate) -> str:
    return f"recall at {at.rate:.1%} (false)"


def _line(name: str, columns: int | None, auc: Share, at: Sequence[AtRate]) -> str:
    counted = "" if columns is None else str(columns)
    shown = f"{name:{WIDTH}}{counted:>9}  {auc.value:.3f} {_interval(auc):<13}"
    return shown + "".join(f"{_found(each):<26}" for each in at)


def _found(at: AtRate) -> str:
    return f"{at.recall.value:.3f} {_interval(at.recall)} ({at.false.value:.1%})" if at.measured else "-"


def _interval(share: Share) -> str:
    return f"{share.low:.3f}..{share.high:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
