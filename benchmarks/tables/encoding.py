"""The table of encoding that is screened in bfloat16."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table


def screened(record: dict[str, Any]) -> list[str]:
    """What was held equal, and a row an encoder, number of tokens and rule."""
    products = "has" if record["bfloat16_products"] else "has no"
    held = [
        f"- {found['encoder']}, {found['features']} features: {found['prompts']} prompts, {found['active']} active entries, "
        f"each prompt alone and in batches equal; at their thresholds {found['at_thresholds']} entries, all right; decided "
        f"otherwise by the float32 product alone: {found['decided_otherwise_before']}"
        + ("." if found["left_open"] is None else f"; left to float32 by the scan: {100 * found['left_open']:.1f} %.")
        for found in record["encoders"]
    ]
    rows = [
        [
            f"{found['encoder']}, {found['features']}",
            row["rule"],
            str(row["tokens"]),
            *(f"{1000 * row[key]:.2f} ms" for key in ("before", "now", "new_weights")),
            f"{row['ratio']:.2f}×",
        ]
        for found in record["encoders"]
        for row in found["times"]
    ]
    head = [
        "encoder, features",
        "rule",
        "tokens",
        "float32 product and selection",
        "now",
        "with new weights",
        "times faster",
    ]
    return [
        f"{record['threads']} threads, on a CPU that {products} products of bfloat16; with fewer than 256 tokens the float32",
        "product proposes the entries. *With new weights*: nothing is known of them from the call before, as in training.",
        "",
        *held,
        "",
        *table(head, rows),
    ]
