"""A report as one HTML file, without scripts or anything from elsewhere: it prints, and opens in any mail program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from circuit_tracer.many.report.behaviour import Behaviour
from circuit_tracer.many.report.findings import Finding
from circuit_tracer.many.report.rates import Mean, Rate
from circuit_tracer.many.report.report import Report
from circuit_tracer.many.report.separation import Separator
from circuit_tracer.many.report.steering import Steered
from circuit_tracer.many.report.trust import Trust

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #2a78b8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; min-width: 46rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
.rate { display: inline-block; position: relative; width: 7rem; height: .8rem; background: #8882; vertical-align: middle; }
.rate i { position: absolute; height: 100%; background: var(--bar); left: 0; }
.rate b { position: absolute; height: 2px; top: calc(50% - 1px); background: currentColor; }
.verdict { padding: .6rem 1rem; border-left: 4px solid var(--bar); background: #8881; margin: .4rem 0; }
.small { opacity: .7; font-size: .85rem; } pre { white-space: pre-wrap; word-break: break-word; font-size: .8rem; }
"""
_MOST_SEPARATORS = 40  # that the table shows; the JSON file has all


def as_html(report: Report, title: str) -> str:
    """The report as a page."""
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
    return _table(["label", "rows#", "right", "probability of the answer#", "answers", "failed"], rows, html={2, 4})


def _trust(trust: Trust) -> str:
    lines = [
        f"{trust.rows} graphs. Incoming edges and bias of every node miss its pre-activation by at most "
        f"{_number(trust.worst_residual)} (median {_number(trust.median_residual)}).",
        f"Replacement score {_mean(trust.replacement)}, completeness {_mean(trust.completeness)}.",
    ]
    if not trust.tested:
        return "".join(f"<p>{escape(line)}</p>" for line in [*lines, "No graph was tested by intervention."])
    lines.append(
        f"{len(trust.tested)} graphs were tested by intervention; something speaks against "
        f"{len(trust.tested) - trust.sound.count} of them."
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
    return f"<p>{said}</p>{_table(head, rows)}"


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
        for steered in each.steered:
            rows.append(
                [
                    f"{each.group.name} ({len(each.group.features)})",
                    each.outcome,
                    _rate(each.coverage),
                    "taken out" if steered.strength == 0 else f"times {steered.strength:g}",
                    *_behaviour_then(steered),
                    _mean(steered.difference),
                    f"{_number(steered.log_probability.mean)} ({_number(steered.random_log_probability.mean)})",
                ]
            )
    known = found[0].steered[0].right is not None
    head = ["group (features)", "outcome", "rows that have it", "steered", "answer right" if known else "answer changes",
            "random groups", "difference#",
            "log probability (random)#"]  # fmt: skip
    level = found[0].steered[0].level
    note = f'<p class="small">Intervals of the difference hold at {level:.1%} each, so that together they hold at 95 %.</p>'
    return _table(head, rows, html={2, 4, 5}) + note


def _behaviour_then(steered: Steered) -> tuple[str, str]:
    """What a group is judged by, and the same of random groups."""
    if steered.right is not None:
        return _rate(steered.right), _rate(steered.random_right)
    return _rate(steered.changed), _rate(steered.random_changed)


def _unexplained(report: Report) -> str:
    left = report.unexplained
    lines = [
        f"{_percent(left.errors.mean)} of the influence on the answers comes from reconstruction errors of the dictionary.",
        f"{left.unnamed} of the features that held have no label.",
        f"{left.failed} rows have no graph.",
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
        cells.append(
            "".join(f"<td{' class=n' if right else ''}>{cell}</td>" for cell, right in zip(each, number, strict=True))
        )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    top = "".join(
        f"<th{' class=n' if number[at] else ''}>{escape(name.rstrip('#'))}</th>" for at, name in enumerate(head)
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _rate(rate: Rate | None) -> str:
    """A bar with its interval, and the numbers."""
    if rate is None or rate.share is None or rate.low is None or rate.high is None:
        return "-"
    bar = f'<i style="width:{rate.share:.1%}"></i><b style="left:{rate.low:.1%};width:{rate.high - rate.low:.1%}"></b>'
    numbers = f"{rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%}), {rate.count} of {rate.total}"
    return f'<span class="rate">{bar}</span> <span class="small">{numbers}</span>'


def _mean(mean: Mean, digits: int = 2) -> str:
    if mean.mean is None or mean.low is None or mean.high is None:
        return "-"
    return f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
