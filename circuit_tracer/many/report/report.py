"""A report on a run, for somebody who must decide about a model. Method: ../README.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, get_args

import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate.incidence import Collected, collect
from circuit_tracer.many.aggregate.labels import tested_labels
from circuit_tracer.many.aggregate.profile import Setting
from circuit_tracer.many.report.behaviour import Behaviour, behaviours, towards_others
from circuit_tracer.many.report.findings import Finding, Outcome, covered, grouped
from circuit_tracer.many.report.halves import Halves, halves
from circuit_tracer.many.report.rates import Mean
from circuit_tracer.many.report.separation import Separator, separators
from circuit_tracer.many.report.steering import Behaviours, Steered, steer
from circuit_tracer.many.report.trust import Trust, trust
from circuit_tracer.many.runs.opened import Run

VERSION = 1
PRUNING = Setting(0.8, 0.98)
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Options:
    """What a report is asked for. label: the column whose values are told apart. expected: the column of right answers.
    groups: the column of rows that belong together (variants of one prompt), which stay in one half. steered: prompts that a
    group is steered on, at most. validated: graphs tested by intervention. seed: of halves, samples and resamples.
    """

    label: str | None = "label"
    expected: str | None = None
    groups: str | None = None
    steered: int = 40
    validated: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Unexplained:
    """What the report does not account for. errors: share of influence that comes from reconstruction errors, mean over graphs.
    unnamed: features that hold and have no label. uncovered: rows of the second half with a label of which no finding's feature
    is in the graph, of how many, by label; empty if there is no finding. failed: rows without a graph.
    """

    errors: Mean
    unnamed: int
    uncovered: dict[str, tuple[int, int]]
    failed: int


@dataclass(frozen=True)
class Report:
    """All of it. repeat: what a second run of it needs."""

    behaviour: list[Behaviour]
    trust: Trust
    halves: Halves
    separators: list[Separator]
    findings: list[Finding]
    unexplained: Unexplained
    repeat: dict[str, Any]

    @property
    def conclusions(self) -> list[str]:
        """What was found, a sentence each."""
        named = [each for each in self.findings if each.is_finding]
        if not self.halves.found:
            return ["No row has a label, so nothing was compared."]
        if not named:
            return [
                "No finding: no group of features separates labels that behave differently, or moves behaviour more than "
                "random groups do, on rows that it was not found on."
            ]
        return [_sentence(each, self.unexplained.errors.mean) for each in named]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        found = asdict(self)
        for plain, each in zip(found["findings"], self.findings, strict=True):
            plain["outcome"] = each.outcome
            for strength, steered in zip(plain["steered"], each.steered, strict=True):
                strength["steers"] = steered.steers
        for plain, separator in zip(found["separators"], self.separators, strict=True):
            plain["holds"] = separator.holds
        return {"version": VERSION, "conclusions": self.conclusions, **found}


def make_report(run: Run, model: Traceable, options: Options = Options(), progress: Progress | None = None) -> Report:
    """Read the graphs of a run, and intervene on some of them. model: the run's own.

    Raises InputError for a run without graphs, a column that is not there, labels that are no two groups of four rows each.
    """
    if not run.ids:
        raise InputError(f"the run {run.address} has no graph yet: trace its rows first (circuit-tracer run)")
    told = progress or (lambda what, done, total: None)
    labels, expected, groups = (_column(run, name) for name in (options.label, options.expected, options.groups))
    parts = halves(run.ids, labels, groups, options.seed)
    for half in parts if labels else ():
        tested_labels(half, labels)  # before the graphs are read, which takes long
    found: list[Separator] = []
    findings: list[Finding] = []
    if labels:
        collected = collect(
            ((row.id, graph) for row, graph in run.graphs()),
            [PRUNING],
            progress=lambda done: told("graphs read", done, len(run.ids)),
        )
        found = separators(collected, labels, parts)
        findings = _findings(run, model, collected, found, labels, expected, parts, options)
    return Report(
        behaviour=behaviours(run.table, labels, expected, options.seed),
        trust=trust(
            run, model, options.validated, options.seed, lambda done, total: told("graphs tested", done, total)
        ),
        halves=parts,
        separators=found,
        findings=findings,
        unexplained=_unexplained(run, found, findings, labels, parts, options.seed),
        repeat=_repeat(run, options),
    )


def _findings(
    run: Run,
    model: Traceable,
    collected: Collected,
    found: list[Separator],
    labels: Mapping[str, str],
    expected: Mapping[str, str],
    parts: Halves,
    options: Options,
) -> list[Finding]:
    groups = {group.name: group for group in grouped(collected, found, parts.found)}
    shares = {name: covered(collected, group, labels, parts.tested) for name, group in groups.items()}
    rows = {name: having[: options.steered] for name, (_, _, having) in shares.items()}
    needed = {id for ids in rows.values() for id in ids}
    graphs = ((id, run.graph(id)) for id in run.ids if id in needed)
    towards = {name: towards_others(run.table, labels, expected, group.label) for name, group in groups.items()}
    features = {name: group.features for name, group in groups.items()}
    steered = steer(graphs, model, features, rows, Behaviours(expected, towards), options.seed)
    made = [Finding(group, *shares[name][:2], towards[name], steered[name]) for name, group in groups.items()]
    return sorted(made, key=lambda each: get_args(Outcome).index(each.outcome))


def _unexplained(
    run: Run,
    found: list[Separator],
    findings: list[Finding],
    labels: Mapping[str, str],
    parts: Halves,
    seed: int,
) -> Unexplained:
    replacement = [row["replacement"] for row in run.table if row["replacement"] is not None]
    uncovered = {}
    real = [each for each in findings if each.is_finding]
    for label in sorted({each.group.label for each in real}):
        mine = [each for each in real if each.group.label == label]
        total = sum(labels[id] == label for id in parts.tested)
        uncovered[label] = (total - max((each.coverage.count for each in mine), default=0), total)
    return Unexplained(
        errors=Mean.of([1 - each for each in replacement], seed),
        unnamed=sum(each.holds and not each.name for each in found),
        uncovered=uncovered,
        failed=sum(row["status"] == "failed" for row in run.table),
    )


def _column(run: Run, name: str | None) -> dict[str, str]:
    """Values of a column as text; of "label", none if no row has one."""
    if name is None or (name == "label" and not any(row.label is not None for row in run.rows)):
        return {}
    return {id: str(value) for id, value in run.values(name).items()}


def _repeat(run: Run, options: Options) -> dict[str, Any]:
    return {
        "run": run.address,
        "rows": len(run.rows),
        "settings": run.settings,
        "fingerprints": run.fingerprints,
        "options": asdict(options),
        "pruning": PRUNING._asdict(),
        "versions": {"circuit-tracing": version("circuit-tracing"), "torch": torch.__version__},
    }


def _sentence(finding: Finding, errors: float | None) -> str:
    best = max(finding.steered, key=lambda each: each.difference.low if each.difference.low is not None else -1.0)
    first, group = finding.group.members[0], finding.group
    done = "taken out" if best.strength == 0 else f"multiplied by {best.strength:g}"
    size = len(group.features)
    many = "s" if size > 1 else ""
    led = f"{first.layer}/{first.index}{f' ({first.name})' if first.name else ''}"
    return (
        f"{group.label!r}: {size} feature{many} led by {led} separate{'' if many else 's'} it with AUC {first.auc:.2f} "
        f"({first.auc_low:.2f} to {first.auc_high:.2f}) on rows not used to find {'them' if many else 'it'}; {done}, "
        f"{_effect(best)}.{_caution(finding, errors)}"
    )


def _caution(finding: Finding, errors: float | None) -> str:
    """What a marker does not say."""
    if finding.outcome != "marker":
        return ""
    share = "" if errors is None else f" ({errors:.0%} of the influence)"
    return f" It marks the behaviour and does not move it: the cause lies elsewhere, or in what the dictionary misses{share}."


def _effect(steered: Steered) -> str:
    if steered.right is None or steered.random_right is None:
        one, other = steered.changed, steered.random_changed
        return f"the answer changes in {one.count} of {one.total} prompts, with random groups in {other.count} of {other.total}"
    one, other = steered.right, steered.random_right
    return f"the answer is right in {one.count} of {one.total} prompts, with random groups in {other.count} of {other.total}"
