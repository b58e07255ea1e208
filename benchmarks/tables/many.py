"""Tables on many prompts (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

BESIDE = 5  # predictors: the fingerprint and what it is compared with; then come its own parts
ORDERS = {"difference": "by edges onto the target", "carried": "along all paths"}


def moved_city(record: dict[str, Any]) -> list[str]:
    """In how many fine-tunes the comparison of graphs finds what has moved."""
    found, top = record["summary"], record["settings"]["top"]
    count = found["fine_tunes"]
    rows = []
    for whose, name in (("found", "the city and its two states"), ("two_others", "two other states, drawn")):
        for order, title in ORDERS.items():
            one = found[whose][order]
            rows.append([name, title, f"{one['first']} of {count}", f"{one['any']} of {count}", f"{one['share']:.0%}"])
    return [
        f"{count} fine-tunes in which a city lies in another state, {found['learnt']} of which answer so; "
        f"{found['conclusive']} comparisons are conclusive (errors carry {found['unexplained']:.0%} of what changes, mean); "
        f"the largest gap of an account is {found['largest_gap']:.0e}.",
        "",
        *table(
            ["features called after", "nodes ranked", "first", f"among the first {top}", f"share of the {top}"], rows
        ),
    ]


def wrong_answers(record: dict[str, Any]) -> list[str]:
    """AUC of each predictor on each weakened copy."""
    runs = record["runs"]
    copies = [f"{run['copy']}, {run['seed']}" for run in runs]
    names = [score["name"] for score in runs[0]["scores"]]
    rows = [["wrong answers", *(f"{run['positives']} of {run['rows']}" for run in runs)]]
    for at, name in enumerate(names):
        scores = [run["scores"][at] for run in runs]
        rows.append([name, *(f"{one['auc']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in scores)])
    for at, name in enumerate(names[1:BESIDE], start=1):
        scores = [run["scores"][at] for run in runs]
        ahead = [f"{one['ahead']:+.3f} ({one['ahead_low']:+.3f} to {one['ahead_high']:+.3f})" for one in scores]
        rows.append([f"fingerprint less {name}", *ahead])
    return [
        "AUC (95 % over groups) of which answers of a weakened copy of the embedded model are wrong; copies by what was done "
        "to them, and seed.",
        "",
        *table(["predictor", *copies], rows),
    ]


def throughput(record: dict[str, Any]) -> list[str]:
    """Graphs a minute, and CPU seconds a graph."""
    ways = {"loop": "`attribute` in a loop", "together": "`attribute_together`", "workers": "the same, two processes"}
    rows = [
        [title, f"{record[way]['graphs_a_minute']:,.0f}", f"{1e3 * record[way]['cpu_seconds_a_graph']:,.1f}"]
        for way, title in ways.items()
    ]
    if "peer" in record:
        count, rate = len(record["peer"]["seconds"]), record["peer"]["graphs_a_minute"]
        rows.append([f"circuit-tracer 0.5.0, {count} of the prompts, one by one", f"{rate:,.1f}", ""])
    return [
        f"{record['prompts']} prompts of 8 to 20 tokens, {record['features']:,.0f} active features (median); edges made "
        f"together differ from those made alone by at most {record['largest_difference']:.0e} of the largest of their row.",
        "",
        *table(["", "graphs a minute", "CPU ms a graph"], rows),
    ]


def triggers(record: dict[str, Any]) -> list[str]:
    """In how many models with and without a trigger a report names a finding."""
    found = record["summary"]
    planted, clean, ranks = found["planted"], found["clean"], found["rank"]
    rows = [
        ["a trigger planted: a finding for questions with the word", f"{found['found']} of {planted}"],
        ["of these, as a cause", f"{found['as a cause']} of {planted}"],
        *(
            [f"features called after the {name} among those that separate: in", f"{ranks[name]['among them']} of {planted}"]
            for name in ranks
        ),
        *([f"rank of the first of them ({name}): median, worst", f"{each['median']}, {each['worst']}"]
          for name, each in ranks.items()),
        ["no trigger, labels by the word: a false alarm", f"{found['false alarms, word']} of {clean}"],
        ["no trigger, labels drawn: a false alarm", f"{found['false alarms, random labels']} of {clean}"],
    ]  # fmt: skip
    return table(["", ""], rows)
