"""Tables on explained attention (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

Record = dict[str, Any]


def cost(record: Record) -> list[str]:
    """Seconds of one question, and of many edges."""
    rows = [["after a trace, seconds (medians)", "first question", "later ones"]]
    for name in ("edge", "score", "score with pairs"):
        rows.append([name, *(f"{record[name][which]['median']:.3f}" for which in ("first", "later"))])
    edges = record["edges"]
    what = f"{edges['keep']} heads for each of {edges['edges']} edges among {edges['nodes']} nodes"
    return table(rows[0], [*rows[1:], [what, "", f"{edges['later']['median']:.2f}"]])


def induction(record: Record) -> list[str]:
    """Rankings of heads: the first five, what the first ten have in common, what the loss gains."""
    overlap, ablation = record["overlap"], record["ablation"]
    rows = [["ranking", "first five", f"of the {overlap['of']} with the highest induction scores", *_added(ablation)]]
    for name, strongest in record["strongest"].items():
        heads = ", ".join(head for head, _ in strongest[:5])
        cells = [f"{found['added'][name]['second copy']:+.2f}" for found in ablation.values()]
        rows.append([name, heads, str(overlap.get(name, "")), *cells])
    for name in ("random", "random of the same layers"):
        cells = [f"{found['added'][name]['mean']:+.2f}" for found in ablation.values()]
        rows.append(
            [name, f"{next(iter(ablation.values()))['added'][name]['groups']} draws", _chance(name, overlap), *cells]
        )
    return table(rows[0], rows[1:])


def _added(ablation: Record) -> list[str]:
    return [
        f"loss on the second copy ({found['second copy']:.2f}) without the five ({how})"
        for how, found in ablation.items()
    ]


def _chance(name: str, overlap: Record) -> str:
    return f"{overlap['by chance']} by chance" if name == "random" else ""


def world(record: Record) -> list[str]:
    """The story of the entity, of all questions and by group."""
    groups = {"all": record, **record["groups"]}
    rows = [["of the questions ...", *groups]]
    for name in ("prompts", "answered right", "with an active feature of the entity"):
        rows.append([name, *(str(found[name]) for found in groups.values())])
    rows.append(
        ["... with an edge from the entity to the answer", *(str(found["heads"]["of"]) for found in groups.values())]
    )
    rows.append(["the head it names", *(_named(found) for found in groups.values())])
    for way in record["answers changed"]:
        for what in ("named head", "another head of its layer"):
            cells = (f"{found['answers changed'][way][what]:g}" for found in groups.values())
            head = "the named head" if what == "named head" else what
            rows.append([f"answers changed without {head} ({way})", *cells])
    for name, value in record["key side"].items():
        if name != "of" and isinstance(value, int | float):
            rows.append([f"key side: {name}", *(f"{found['key side'][name]:g}" for found in groups.values())])
    return table(rows[0], rows[1:])


def _named(found: Record) -> str:
    return ", ".join(f"{head}: {count}" for head, count in found["heads"]["named"].items())


def scores(record: Record) -> list[str]:
    """Sums of contributors against scores, and who carries them."""
    errors = [f"{record[f'error_of_{what}'][which]:.1e}" for what in ("score", "mass") for which in ("median", "max")]
    titles = [f"of the {what}, {which}" for what in ("score", "mass") for which in ("median", "largest")]
    shares = {side: record["share_of_mass"][f"{side}_side"] for side in ("query", "key")}
    rows = [[f"{record['heads']} heads, {record['tokens']} tokens", "query side", "key side"]]
    rows += [[f"error in parts {title}", value, ""] for title, value in zip(titles, errors, strict=True)]
    rows += (
        [f"share of the mass: {kind}", *(f"{side[kind]:.1%}" for side in shares.values())] for kind in shares["key"]
    )
    return table(rows[0], rows[1:])
