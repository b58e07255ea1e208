"""A report as one HTML file, without scripts or anything from elsewhere: it prints, and opens in any mail program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from circuit_tracer.many.report.behaviour import Behaviour
from circuit_tracer.many.report.findings import Finding
from circuit_tracer.many.report.rates import Mean, Rate
from circuit_tracer.many.report.report import Report
from circuit_tracer.many.report.separation import RATE, Separator
from circuit_tracer.many.report.steering import ERROR, Steered
from circuit_tracer.many.report.trust import Trust

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #2a78b8; --quiet: #5f6368; }
@media (prefers-color-scheme: dark) { :root { --quiet: #a9adb2; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; min-width: 46rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
td { min-width: 3.5rem; } .long { min-width: 10rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.rate { display: inline-block; position: relative; width: 7rem; height: .8rem; background: #8882; vertical-align: middle; }
.rate i { position: absolute; height: 100%; background: var(--bar); left: 0; }
.rate b { position: absolute; height: 2px; top: calc(50% - 1px); background: currentColor; }
.verdict { padding: .6rem 1rem; border-left: 4px solid var(--bar); background: #8881; margin: .4rem 0; }
.small { color: var(--quiet); font-size: .85rem; } pre { white-space: pre-wrap; word-break: break-word; font-size: .8rem; }
"""
_LONG = 40  # characters of a cell that is not squeezed
_MOST_SEPARATORS = 40  # that the table shows; the JSON file has all


def as_html(report: Report, title: str) -> str:
    """The report as a page.

    Args:
        report: Of `make_report`.
        title: Of the page.

    Returns:
        The text of a self-contained HTML page.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="verdict">{escape(each)}</p>' for each in report.conclusions),
        "<h2>What the model does</h2>",
        _behaviour(report.behaviour),
        "<h2>How far the graphs can be trusted</h2>",
        _trust(report.trust),
        "<h2>Features that separate labels</h2>",
        _separators(report),
        "<h2>Groups of them, steered</h2>",
        _findings(report.findings),
        "<h2>What stays unexplained</h2>",
        _unexplained(report),
        "<h2>To repeat it</h2>",
        f"<pre>{escape(json.dumps(report.repeat, indent=1, ensure_ascii=False))}</pre>",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>"
    )


def _behaviour(found: Sequence[Behaviour]) -> str:
    rows = []
    for each in found:
        answers = "; ".join(f"{token.strip() or repr(token)} {_percent(rate.share)}" for token, rate in each.answers)
        failed = ", ".join(f"{count} {name}" for name, count in each.failed.items()) or "none"
        rows.append(
            [
                each.label or "all rows",
                str(each.rows),
                _rate(each.right),
                _mean(each.probability, 3),
                escape(answers),
                failed,
            ]
        )
    note = (
        "An answer is the most probable next token, its probability a mean; right, if it is the answer expected. Intervals "
        "hold at 95 % for rows that are independent of each other; of rows that are variants of one prompt they are too narrow."
    )
    head = ["label", "rows#", "right", "probability of the answer#", "answers", "failed"]
    return _table(head, rows, html={2, 4}) + _note(note)


def _trust(trust: Trust) -> str:
    lines = [
        f"{trust.rows} graphs. Incoming edges and bias of every node miss its pre-activation by at most "
        f"{_number(trust.worst_residual)} of the sum of their sizes (median of the graphs: {_number(trust.median_residual)}).",
        f"Replacement score {_mean(trust.replacement)}, completeness {_mean(trust.completeness)}.",
    ]
    if not trust.tested:
        return "".join(f"<p>{escape(line)}</p>" for line in [*lines, "No graph was tested by intervention."])
    sound = trust.sound
    lines.append(
        f"{sound.total} graphs were tested by intervention; nothing speaks against {sound.count} of them, "
        f"{_percent(sound.share)} ({_percent(sound.low)} to {_percent(sound.high)})."
    )
    rows = [
        [
            each.id,
            _number(each.spearman),
            _percent(each.necessity),
            _percent(each.sufficiency),
            " ".join(each.distrust) or "-",
        ]
        for each in trust.tested
    ]
    head = ["row", "edges against ablations, Spearman#", "necessity#", "sufficiency#", "what speaks against it"]
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + _table(head, rows)


def _separators(report: Report) -> str:
    halves = report.halves
    if not report.separators:
        said = f"None was found on {len(halves.found)} rows." if halves.found else "No row has a label."
        return f"<p>{said}</p>"
    shown = [each for each in report.separators if each.holds] or report.separators
    held = sum(each.holds for each in report.separators)
    said = (
        f"Found on {len(halves.found)} rows, tested on {len(halves.tested)} others: {len(report.separators)} found, "
        f"{held} held."
    )
    rows = [_separator(each) for each in shown[:_MOST_SEPARATORS]]
    head = [
        "label",
        "feature",
        "name",
        "AUC, found on#",
        "AUC, tested on#",
        "q#",
        "rows with it that have it#",
        "without#",
    ]
    note = (
        f"AUC: 0.5 says nothing, 1 separates always. q: false discovery rate on the second half; up to {RATE:g} a feature "
        "held. What separates labels need not cause them."
    )
    return f"<p>{said}</p>{_table(head, rows)}{_note(note)}"


def _separator(each: Separator) -> list[str]:
    return [
        each.label,
        f"{each.layer}/{each.index}",
        each.name or "-",
        f"{each.auc_found:.2f}",
        f"{each.auc:.2f} ({each.auc_low:.2f} to {each.auc_high:.2f})",
        f"{each.q:.1g}",
        _percent(each.frequency_with),
        _percent(each.frequency_without),
    ]


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return "<p>No group.</p>"
    rows = []
    for each in found:
        group = [f"{each.group.name} ({len(each.group.features)})", each.outcome, _rate(each.coverage)]
        for steered in each.steered:
            rows.append(
                [
                    *(group if steered is each.steered[0] else [""] * len(group)),
                    "taken out" if steered.strength == 0 else f"times {steered.strength:g}",
                    *_behaviour_then(steered),
                    _mean(steered.difference),
                    f"{steered.p:.1g}",
                    f"{_number(steered.log_probability.mean)} ({_number(steered.random_log_probability.mean)})",
                ]
            )
    head = ["group (features)", "outcome", "rows that have it", "steered", "before", "answers then", "with random groups",
            "difference#", "p#", "log probability (random)#"]  # fmt: skip
    note = (
        "cause: steering does more than steering random groups of as many features of the same graphs, with p at most "
        f"{ERROR:g}; p is the chance of that for a group that is itself a random one, times the number of tests in this table. "
        "marker: the label's rows are right more or less often than the others, but steering does not show it. separates only: "
        "they are right as often, as far as can be told. difference: by how much more of the prompts go the way of the other "
        "labels than with random groups; where no right answers are known, by how much more of them change."
    )
    return _table(head, rows, html={2, 4, 5, 6}) + _note(note)


def _behaviour_then(steered: Steered) -> tuple[str, str, str]:
    """Answers without steering, with it, and with random groups; draws on one prompt are alike, so these have no interval."""
    before, right, drawn = steered.before, steered.right, steered.random_right
    if before is None or right is None:
        return "-", f"changed: {_rate(steered.changed)}", f"changed: {_rate(steered.random_changed, interval=False)}"
    return (
        f"right: {before.count} of {before.total}",
        f"right: {_rate(right)}",
        f"right: {_rate(drawn, interval=False)}",
    )


def _unexplained(report: Report) -> str:
    left = report.unexplained
    lines = [
        f"{_percent(left.errors.mean)} of the influence on the answers comes from reconstruction errors of the dictionary.",
        f"{left.unnamed} of the features that held have no label.",
        f"Rows that failed and have no graph: {left.failed}. Rows that are not traced yet: {left.waiting}.",
        *(f"Rows labelled {name!r}: {count}, too few to compare." for name, count in left.not_compared.items()),
        *(
            f"{count} of {total} tested rows labelled {label!r} have no feature of a finding."
            for label, (count, total) in left.uncovered.items()
        ),
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], html: frozenset[int] | set[int] = frozenset()) -> str:
    """A table; columns whose name ends in # hold numbers, those in ``html`` are not escaped."""
    number = [name.endswith("#") for name in head]
    cells = []
    for row in rows:
        each = (cell if at in html else escape(cell) for at, cell in enumerate(row))
        cells.append("".join(f"<td{_kind(cell, right)}>{cell}</td>" for cell, right in zip(each, number, strict=True)))
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    top = "".join(
        f"<th{' class=n' if number[at] else ''}>{escape(name.rstrip('#'))}</th>" for at, name in enumerate(head)
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _kind(cell: str, number: bool) -> str:
    return " class=n" if number else " class=long" if len(cell) > _LONG else ""


def _note(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


def _rate(rate: Rate | None, interval: bool = True) -> str:
    """A bar with its interval, and the numbers."""
    if rate is None or rate.share is None or rate.low is None or rate.high is None:
        return "-"
    bar, between = f'<i style="width:{rate.share:.1%}"></i>', ""
    if interval:
        bar += f'<b style="left:{rate.low:.1%};width:{rate.high - rate.low:.1%}"></b>'
        between = f" ({rate.low:.1%} to {rate.high:.1%})"
    numbers = f"{rate.share:.1%}{between}, {rate.count} of {rate.total}"
    return f'<span class="rate">{bar}</span> <span class="small">{numbers}</span>'


def _mean(mean: Mean, digits: int = 2) -> str:
    if mean.mean is None or mean.low is None or mean.high is None:
        return "-"
    return f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
