"""Tables of what was lost, damaged, or mixed up: nothing, and out of how many tries (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table


def losses(record: dict[str, Any]) -> list[str]:
    """Signals, kills, full disks, several processes: what was lost."""
    rows = [
        [line["what"], line["how"], str(line["tries"]), str(line["kept"]), str(len(line["losses"]))]
        for line in record["lines"]
    ]
    total = record["total"]
    return [
        f"Commands that were disturbed while they wrote: {total['losses']} losses in {total['tries']} tries. *Kept*: tries",
        "after which there was something to go on with; in the others there was nothing yet, or the older file stayed.",
        "",
        *table(["command", "disturbed by", "tries", "kept", "losses"], rows),
    ]


def flips(record: dict[str, Any]) -> list[str]:
    """Single flipped bits: what readers said."""
    columns = ["flips", "detected", "harmless", "undetected", "failed"]
    rows = [[name, *(str(found[column]) for column in columns)] for name, found in record["files"].items()]
    return [
        "One bit of a file is flipped, and the file is read. *Detected*: an error says so. *Harmless*: what is",
        "read is the same. *Undetected*: something else was read. *Failed*: an error that is none of ours.",
        "",
        *table(["file", *columns], rows),
    ]


def fuzz(record: dict[str, Any]) -> list[str]:
    """Damaged files: what readers made of them."""
    columns = ["refused", "same", "other"]
    rows = [[name, *(str(found.get(column, 0)) for column in columns)] for name, found in record["readers"].items()]
    wrong = sum(count for outcome, count in record["outcomes"].items() if outcome not in columns)
    return [
        f"{record['mutations']} damaged files, each read: *refused* with an error of ours; read as the *same*; or read as",
        f"another valid document (*other*). Ends of another kind (read wrongly, failed, slow, out of memory): {wrong}.",
        "",
        *table(["reader", *columns], rows),
    ]


def threads(record: dict[str, Any]) -> list[str]:
    """Calls at once, each compared with the same call alone."""
    rows = [[f"`{name}`", str(found["same"])] for name, found in record["calls"].items()]
    return [
        f"{record['threads']} threads, {record['calls_a_thread']} calls each, on one model at once; results that differ from",
        f"those of the call alone: {len(record['wrong'])}.",
        "",
        *table(["call", "the same"], rows),
    ]
