"""Tables on probes and monitors (see pages.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables.markdown import table

RATES = {"0.01": "1 %", "0.001": ".1 %"}


def personal(record: dict[str, Any]) -> list[str]:
    """Tokens and texts with personal data, on unseen template families and on unseen languages."""
    settings = record["settings"]
    lines = [
        f"SmolLM2 behind layer {settings['layer']}: {settings['texts']} made-up texts in five languages, "
        f"{settings['with personal data']} with personal data ({settings['personal tokens']:,} of "
        f"{settings['tokens']:,} tokens, the two families that set thresholds included: "
        f"{settings['texts that set thresholds']} texts). Features are the model's neurons: it has no trained dictionary here.",
        "",
    ]
    for grouping, rows in record["groups"].items():
        shown = [
            [
                row["name"],
                _auc(row["tokens"]),
                *_rates(row["tokens"]),
                _number(row["f1"]),
                _number(row["f1_spans"]),
                _auc(row["texts"]),
                *_rates(row["texts"]),
            ]
            for row in rows
        ]
        head = ["way", "AUC of tokens", *_heads("tokens"), "F1 tokens", "F1 spans", "AUC of texts", *_heads("texts")]
        lines += [f"Unseen {grouping}:", "", *table(head, shown), ""]
    return lines[:-1]


def statements(record: dict[str, Any]) -> list[str]:
    """Statements that a model does not hold true, or answers that it gets wrong: one table a model and grouping."""
    lines: list[str] = []
    for name, model in record["models"].items():
        for grouping in (key for key in model["layers"][0] if key != "layer"):
            lines += [f"{name}{_counts(model)}, unseen {grouping}:", "", *_by_layer(model["layers"], grouping), ""]
    return lines[:-1]


def throughput(record: dict[str, Any]) -> list[str]:
    """Tokens a second of each way, and its share of the bare pass and of the whole."""
    rates, settings = record["tokens_a_second"], record["settings"]
    titles = {
        "bare": f"bare pass, up to layer {settings['layer']} of {settings['layers']}",
        "reading": "the same, with tokenising",
        "whole": "whole pass, with logits",
        "judge": "the same model asked outright",
    }
    rows = [
        [titles.get(name, name), f"{rate:,.0f}", f"{rate / rates['bare']:.2f}", f"{rate / rates['whole']:.2f}"]
        for name, rate in rates.items()
    ]
    return [
        f"SmolLM2, {settings['texts']} texts of {settings['tokens']:,} tokens, one thread, processor time, median of rounds "
        f"(the judge: one); scores of batches differ from those of single texts by {record['largest_difference']:.0e}.",
        "",
        *table(["", "tokens a second", "of the bare pass", "of the whole"], rows),
    ]


def _by_layer(layers: Sequence[Mapping[str, Any]], grouping: str) -> list[str]:
    """A row a way, a column a layer; recall at the two rates at the last layer."""
    last = layers[-1][grouping]
    rows = [
        [row["name"], *(_auc(layer[grouping][at]["texts"]) for layer in layers), *_rates(row["texts"])]
        for at, row in enumerate(last)
    ]
    head = ["way", *(f"AUC, layer {layer['layer']}" for layer in layers), *_heads(f"layer {layers[-1]['layer']}")]
    return table(head, rows)


def _counts(model: Mapping[str, Any]) -> str:
    if "held" in model:
        return f" ({sum(model['held'].values()):,} facts that it gets right)"
    return f" ({model['wrong']} of {model['questions']} answers wrong)"


def _heads(what: str) -> list[str]:
    return [f"{what}: recall at {rate} (false)" for rate in RATES.values()]


def _auc(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    value, low, high = found["auc"]
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _rates(found: Mapping[str, Any] | None) -> list[str]:
    """Recall, and in brackets the share of unseen negatives that is flagged; – where negatives are too few."""
    shown = []
    for rate in RATES:
        at = None if found is None else found["at"][rate]
        shown.append("–" if at is None else f"{at['recall'][0]:.0%} ({at['false']:.1%})")
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
