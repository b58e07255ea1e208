"""A report on a run, for somebody who must decide about a model. Method: ../README.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate.incidence import Collected, collect
from circuit_tracer.many.aggregate.profile import Setting
from circuit_tracer.many.report.behaviour import Behaviour, behaviours, towards_others
from circuit_tracer.many.report.findings import Finding, Outcome, covered, grouped, having
from circuit_tracer.many.report.halves import Halves, halves
from circuit_tracer.many.report.rates import Mean
from circuit_tracer.many.report.separation import Separator, compared, separators
from circuit_tracer.many.report.steering import Behaviours, Steered, steer
from circuit_tracer.many.report.trust import Trust, trust
from circuit_tracer.many.runs.opened import Run
from circuit_tracer.version import package_version

VERSION = 1
PRUNING = Setting(0.8, 0.98)
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Options:
    """What a report is asked for.

    Attributes:
        label: The column whose values are told apart.
        expected: The column of right answers.
        groups: The column of rows that belong together (variants of one prompt), which stay in one half.
        steered: Prompts that a group is steered on, at most.
        validated: Graphs tested by intervention.
        seed: Of halves, samples and resamples.
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
    is in the graph, of how many, by label; empty if there is no finding. not_compared: labels of too few rows to be told from
    the others, with how many. failed, waiting: rows without a graph, and not traced yet.
    """

    errors: Mean
    unnamed: int
    uncovered: dict[str, tuple[int, int]]
    not_compared: dict[str, int]
    failed: int
    waiting: int


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        repeat: What a second run of it needs.
    """

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
        found = [_sentence(each, self.unexplained.errors.mean) for each in named] or [
            "No finding: no group of features separates labels that behave differently, or moves behaviour more than "
            f"random groups do, on {len(self.halves.tested)} rows that it was not found on. That is no proof that there is "
            "none: what few rows show, or what the dictionary misses, would not be seen."
        ]
        sound = self.trust.sound
        if sound.share is not None and sound.share < 0.5:
            found.append(
                f"Read this with care: something speaks against {sound.total - sound.count} of {sound.total} graphs that were "
                "tested by intervention."
            )
        return found

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


class Columns(NamedTuple):
    """Values by id; empty where nothing is given."""

    labels: Mapping[str, str]
    expected: Mapping[str, str]
    groups: Mapping[str, str]


def make_report(
    run: Run,
    model: Traceable,
    options: Options = Options(),
    progress: Progress | None = None,
    names: Mapping[tuple[int, int], str] | None = None,
) -> Report:
    """Read the graphs of a run, and intervene on some of them.

    Args:
        run: The run (`open_run`).
        model: The run's own.
        options: What is asked for.
        progress: Called with (stage, done, total).
        names: What features are called, by (layer, index), before what graphs keep.

    Returns:
        The report.

    Raises:
        InputError: For a run without graphs, a column that is not there, or labels of which no two have four rows, two in
            either half.
    """
    if not run.ids:
        raise InputError(f"the run {run.address} has no graph yet: trace its rows first (circuit-tracer run)")
    told = progress or (lambda what, done, total: None)
    labels, expected, groups = (_column(run, name) for name in (options.label, options.expected, options.groups))
    parts = halves(run.ids, labels, groups, options.seed)
    enough = compared(labels, parts)
    found: list[Separator] = []
    findings: list[Finding] = []
    uncovered: dict[str, tuple[int, int]] = {}
    if labels:
        collected = collect(
            ((row.id, graph) for row, graph in run.graphs()),
            [PRUNING],
            progress=lambda done: told("graphs read", done, len(run.ids)),
        )
        collected.names.update(names or {})
        found = separators(collected, labels, parts)
        findings = _findings(run, model, collected, found, Columns(labels, expected, groups), parts, options)
        uncovered = _uncovered(collected, findings, labels, parts)
    return Report(
        behaviour=behaviours(run.table, labels, expected, options.seed),
        trust=trust(
            run, model, options.validated, options.seed, lambda done, total: told("graphs tested", done, total)
        ),
        halves=parts,
        separators=found,
        findings=findings,
        unexplained=Unexplained(
            errors=Mean.of(
                [1 - row["replacement"] for row in run.table if row["replacement"] is not None], options.seed
            ),
            unnamed=sum(each.holds and not each.name for each in found),
            uncovered=uncovered,
            not_compared=dict(sorted(Counter(each for each in labels.values() if each not in enough).items())),
            failed=sum(row["status"] == "failed" for row in run.table),
            waiting=sum(row["status"] == "waiting" for row in run.table),
        ),
        repeat=_repeat(run, options),
    )


def _findings(
    run: Run,
    model: Traceable,
    collected: Collected,
    found: list[Separator],
    columns: Columns,
    parts: Halves,
    options: Options,
) -> list[Finding]:
    labels, expected = columns.labels, columns.expected
    groups = {group.name: group for group in grouped(collected, found, parts.found)}
    shares = {name: covered(collected, group, labels, parts.tested) for name, group in groups.items()}
    rows = {
        name: _steered_on(having, columns.groups, options.steered, options.seed)
        for name, (*_, having) in shares.items()
    }
    needed = {id for ids in rows.values() for id in ids}
    graphs = ((id, run.graph(id)) for id in run.ids if id in needed)
    towards = {name: towards_others(run.table, labels, expected, group.label) for name, group in groups.items()}
    features = {name: group.features for name, group in groups.items()}
    steered = steer(graphs, model, features, rows, Behaviours(expected, towards), options.seed)
    made = [Finding(group, *shares[name][:2], towards[name], steered[name]) for name, group in groups.items()]
    return sorted(made, key=lambda each: get_args(Outcome).index(each.outcome))


def _steered_on(ids: Sequence[str], groups: Mapping[str, str], steered: int, seed: int) -> list[str]:
    """At most that many of the ids, in an order drawn by lot, one of a group: prompts that count by themselves."""
    order = np.random.default_rng(seed).permutation(len(ids))
    found = {(ids[place] in groups, groups.get(ids[place], ids[place])): ids[place] for place in order[::-1].tolist()}
    return list(found.values())[::-1][:steered]


def _uncovered(
    collected: Collected, findings: list[Finding], labels: Mapping[str, str], parts: Halves
) -> dict[str, tuple[int, int]]:
    """See `Unexplained`."""
    groups = [each.group for each in findings if each.is_finding]
    uncovered = {}
    for label in sorted({each.label for each in groups}):
        seen = set[str]().union(*(having(collected, each) for each in groups if each.label == label))
        mine = [id for id in parts.tested if labels[id] == label]
        uncovered[label] = (len([id for id in mine if id not in seen]), len(mine))
    return uncovered


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
        "versions": {"circuit-tracing": package_version(), "torch": torch.__version__},
    }


def _sentence(finding: Finding, errors: float | None) -> str:
    best = max(finding.steered, key=lambda each: (each.steers, -each.p))
    first, others = finding.group.counted[0], len(finding.group.features) - 1
    also = f", with {others} other{'s' if others > 1 else ''} in the same prompts," if others else ""
    done = "taken out" if best.strength == 0 else f"multiplied by {best.strength:g}"
    return (
        f"{finding.group.label!r}: feature {first.called}{also} separates it with AUC {first.auc:.2f} ({first.auc_low:.2f} to "
        f"{first.auc_high:.2f}) on rows not used to find it; {done}, {_effect(best)}.{_caution(finding, errors)}"
    )


def _caution(finding: Finding, errors: float | None) -> str:
    """What the outcome does not say."""
    if finding.outcome != "marker":
        known = finding.towards is not None
        return "" if known else " Whether they become those of other labels is not known: no right answers were given."
    share = "" if errors is None else f" ({errors:.0%} of the influence)"
    return (
        " It goes with the behaviour; that it moves it was not shown. The cause may lie elsewhere, in what the dictionary "
        f"misses{share}, or be too weak for so few prompts."
    )


def _effect(steered: Steered) -> str:
    if steered.right is None or steered.random_right is None:
        one, other = steered.changed, steered.random_changed
        return f"the answer changes in {one.count} of {one.total} prompts, with random groups in {other.count} of {other.total}"
    one, other, before = steered.right, steered.random_right, steered.before
    clean = "" if before is None else f" (before: {before.count})"
    return (
        f"the answer is right in {one.count} of {one.total} prompts{clean}, with random groups in {other.count} of "
        f"{other.total}"
    )
