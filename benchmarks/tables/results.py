"""Tables of speed, memory, ground truth and faithfulness: one function a record, from its JSON to lines (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

Record = dict[str, Any]

# columns of a validation report that the table shows, and what they are called there
FAITHFUL = {
    "constrained: edges, Spearman": "edges, predicted against measured, all else frozen: Spearman",
    "window: edges, Spearman": "the same, MLPs between source and target live",
    "live: edges, Spearman": "the same, everything live",
    "live: edges, slope": "slope of measured over predicted, everything live",
    "live: influence with effect": "influence of a node with the effect of its ablation: Spearman",
    "stream cosine, feature, +1": "residual stream one layer above a perturbed feature: cosine",
    "MLP cosine, feature, +1": "MLP output one layer above: cosine",
    "share, explained": "share of influence that features and tokens explain",
    "share, errors": "share of influence through errors",
    "share, attention": "share through attention that is frozen but would have changed",
    "probability, live, clean": "probability of the answer",
    "probability, live, without": "without the circuit",
    "probability, live, without_others": "without as many others",
    "probability, live, only": "with the circuit alone",
    "probability, live, nothing": "with no feature at all",
}


def startup(record: Record) -> list[str]:
    """Seconds until the command line has answered, and until a model is ready and has traced."""
    rows = [
        [
            f"`circuit-tracer {name}`",
            *(f"{found[engine]['median']:.2f} s" if engine in found else "–" for engine in ENGINES),
        ]
        for name, found in record["calls"].items()
    ]
    lines = table(["", *ENGINES.values()], rows)
    if not (models := record.get("ready")):
        return lines
    rows = [
        [
            name,
            f"{found['imported']:.2f} s",
            f"{found['ready']:.2f} s",
            f"{found['dictionary_mapped'] / 1e6:.0f} of {found['dictionary_bytes'] / 1e6:.0f} MB",
            *(f"{found[call]['seconds']:.2f} s, {found[call]['peak_gb']:.1f} GB" for call in ("first", "second")),
        ]
        for name, found in models.items()
    ]
    heads = ["from the start of a process", "imported", "ready", "dictionary in memory", "first trace", "second"]
    return [*lines, "", *table(heads, rows)]


ENGINES = {"ours": "this engine", "peer": "circuit-tracer 0.5.0"}


def busy(record: Record) -> list[str]:
    """Seconds of a trace beside processes that never wait."""
    rows = [
        [
            str(line["loops"]),
            f"{line['first']:.2f} s",
            f"{line['first_ratio']:.2f}",
            f"{line['warm']:.2f} s",
            f"{line['warm_ratio']:.2f}",
            f"{line['peak_gb']:.2f} GB",
        ]
        for line in record["lines"]
    ]
    head = ["busy processes", "first call", "times quiet", "later calls", "times quiet", "peak"]
    return [
        f"`attribute()` with {record['threads']} threads, {record['rows']} features expanded; graphs are equal to the bit.",
        "",
        *table(head, rows),
    ]


def waits(record: Record) -> list[str]:
    """How often a GPU would be waited for, before anything was done about it and now."""
    rows = [
        [name, *(f"{was} → {found['now'][key]}" for key, was in found["before"].items())]
        for name, found in record["cases"].items()
    ]
    return [
        "Counted on a CPU, on the path and with the kernels of a GPU. *Reads*: the host waits until the device has done",
        "everything that was asked of it; *uploads*: copies to the device that are waited for; *launches*: operations there,",
        f"those of the model's own pass too. Before: commit {record['before']}.",
        "",
        *table(["", *next(iter(record["cases"].values()))["before"]], rows),
    ]


def long_prompts(record: Record) -> list[str]:
    """Time and memory by length of the prompt, beside the law; then a prompt of 4,000 tokens, and a per-layer dictionary."""
    kinds = {"growth": "cross-layer", "longest": "cross-layer", "per_layer": "per layer"}
    rows = [
        [
            kinds[kind],
            str(line["tokens"]),
            str(line["active"]),
            str(line["expanded"]),
            f"{line['seconds']:.1f}",
            f"{line['seconds_by_the_law']:.1f}" if "seconds_by_the_law" in line else "–",
            f"{1000 * line['tflop'] / line['seconds']:.0f}",
            f"{line['planned'] / 1e9:.2f} GB",
            f"{line['actual'] / 1e9:.2f} GB",
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in line.get("stages", {}).items()) or "–",
        ]
        for kind in kinds
        for line in record.get(kind, [])
    ]
    head = [
        "dictionary",
        "tokens",
        "active features",
        "expanded",
        "seconds",
        "by the law",
        "GFLOP/s",
        "planned",
        "peak",
    ]
    return [
        f"Prompts inside {record['memory']}; *by the law*: rows × tokens × (layers + attended tokens)."
        + (
            f" Square products: {record['matrix_product_gflops']:.0f} GFLOP/s."
            if "matrix_product_gflops" in record
            else ""
        ),
        *(f"Not as it should be: {each}." for each in record.get("failed", [])),
        "",
        *table([*head, "seconds of each stage"], rows),
    ]


def memory(record: Record) -> list[str]:
    """Plans beside peaks, and the graphs of half the memory."""
    rows = [
        [
            line["dictionary"],
            str(line["tokens"]),
            str(line["active"]),
            str(line["expanded"]),
            f"{line['planned'] / 1e9:.2f} GB",
            f"{line['actual'] / 1e9:.2f} GB",
            f"{line['planned'] / line['actual']:.2f}",
        ]
        for line in record["configurations"]
    ]
    lines = table(["dictionary", "tokens", "active features", "expanded", "planned", "peak", "ratio"], rows)
    halves = [
        f"{line['dictionary']}, {line['tokens']} tokens: {'same nodes' if line['same_nodes'] else 'OTHER NODES'}, edges "
        f"differ by {line['largest_difference']:.0e} at most"
        for line in record["halves"]
    ]
    return [*lines, "", f"With half of what the trace itself would take: {'; '.join(halves)}."]


def kernels(record: Record) -> list[str]:
    """Ours beside the best of torch's ways, by size and operation."""
    rows = []
    for size in record["sizes"]:
        for found in size["operations"]:
            ours, *others = found["ways"]
            best = min(
                (way for way in others if not way["way"].startswith("ours")), key=lambda way: way["seconds"]["p50"]
            )
            rows.append(
                [
                    size["size"]["name"],
                    found["operation"],
                    f"{1e3 * ours['seconds']['p50']:.2f}",
                    f"{ours['gb_per_second']:.1f} GB/s"
                    if found["bound"] == "memory"
                    else f"{1e3 * ours['tflops']:.0f} GFLOP/s",
                    f"{ours['share']:.2f} of {'the copy' if found['bound'] == 'memory' else 'the product'}",
                    f"{best['way']}: {1e3 * best['seconds']['p50']:.2f}",
                    f"{found['times_faster_than_best_other']:.1f}×",
                ]
            )
    rates = ", ".join(f"{1e3 * rate:.0f} GFLOP/s in {name}" for name, rate in record["tflops"].items())
    where = record.get("gpu", f"{record['threads']} threads")
    return [
        f"Ceilings ({where}): copies {record['copy_gb_per_second']:.1f} GB/s, products {rates}.",
        "",
        *table(["shape", "operation", "ours, ms", "rate", "of the ceiling", "best of torch, ms", "faster"], rows),
    ]


def ground_truth(record: Record) -> list[str]:
    """What is known to be true: of the world, then of the toys."""
    world = record["world"]
    rows = [["prompts", *(str(group["prompts"]) for group in world.values())]]
    first = next(iter(world.values()))
    for name in first["graph"]:
        rows.append([f"the entity's feature {name}" if name.startswith("is") else name,
                     *(f"{group['graph'][name]:.1%}" for group in world.values())])  # fmt: skip
    for name in first["swaps"]:
        cells = [" / ".join(f"{share:.1%}" for share in group["swaps"][name].values()) for group in world.values()]
        rows.append([f"answer becomes the other entity's: {name}, 1× / 2×", *cells])
    lines = table(["the embedded world", *world], rows)
    for toy, dictionaries in record["toys"].items():
        names = list(dict.fromkeys(name for claims in dictionaries.values() for name in claims))
        rows = [
            [name, *(f"{claims.get(name, float('nan')):.3g}" for claims in dictionaries.values())] for name in names
        ]
        lines += ["", *table([f"toy: {toy}", *dictionaries], rows)]
    return lines


def validation(record: Record) -> list[str]:
    """Whether graphs are faithful: means over prompts, the dictionary's and the controls'."""
    controls = record["controls"]
    rows = []
    for name, title in FAITHFUL.items():
        if name not in record["graph"]:
            continue
        found = record["graph"][name]
        cells = [f"{found['mean']:.3f} ({found['least']:.2f} … {found['most']:.2f})"]
        cells += [f"{control[name]['mean']:.3f}" if name in control else "–" for control in controls.values()]
        rows.append([title, *cells])
    head = [
        f"mean of {record['prompts']} prompts (least … most)",
        record["subject"],
        *(f"control: {name}" for name in controls),
    ]
    lines = table(head, rows)
    timed = record["seconds_a_validation"]
    lines += ["", f"A validation took {timed['mean']:.1f} s on average, {timed['most']:.1f} s at most."]
    if large := record.get("large"):
        lines += [f"One of {large['nodes']} nodes, {large['kept_edges']} edges: {large['seconds']:.1f} s."]
    return lines


def gemma_shaped(record: Record) -> list[str]:
    """One long prompt on a random model of Gemma 2 2B's shape."""
    return [
        f"{record['tokens']} tokens, {record['active']} active features, {record['expanded']} expanded, {record['dtype']}: "
        f"{record['seconds']:.1f} s, peak {record['peak_gb']:.1f} GB of {record['memory']}; residual of the sum rule "
        f"{record['residual']:.1e}. Plan: {record['plan']}.",
    ]


def against_peer(record: Record) -> list[str]:
    """Whole calls beside circuit-tracer's."""
    found = record["against_peer"]
    rows = [
        [name, f"{found[engine]['seconds']:.2f}", f"{found[engine]['peak_gb']:.1f} GB"]
        for engine, name in (("peer", "circuit-tracer 0.5.0"), ("ours", "this engine"))
    ]
    rows.append(["ratio", f"**{found['times_faster']:.0f}×**", f"{found['times_less_memory']:.1f}×"])
    if "warm_seconds" in found["ours"]:
        warm = found["ours"]
        rows.append(["this engine, later calls", f"{warm['warm_seconds']:.2f}", f"{warm['warm_peak_gb']:.1f} GB"])
        rows.append(
            ["ratio", f"{found['times_faster_warm']:.0f}×", f"{found['peer']['peak_gb'] / warm['warm_peak_gb']:.1f}×"]
        )
    return table(["", "seconds", "peak memory"], rows)


def speed(record: Record) -> list[str]:
    """Whole calls beside circuit-tracer's, and rows a second."""
    found, rate = record["against_peer"], record["row_rate"]
    rows = [f"{line['rows']} rows: {line['rows_per_second']:.0f}/s, {line['fraction']:.2f}" for line in rate["rows"]]
    return [
        f"Whole `attribute()` call on a 25-token prompt, {found['rows']} features expanded, cross-layer transcoder",
        f"30×2048, float32, {found['threads']} threads, the two engines one after the other in the same run:",
        "",
        *against_peer(record),
        "",
        "Rows a second, and the arithmetic the method needs for them as a share of the machine's own matrix products",
        f"({rate['matrix_product_gflops']:.0f} GFLOP/s): {'; '.join(rows)}.",
    ]
