"""Tables on training, from the records of benchmarks.training (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

SETS = {"demo": "the embedded model", "smollm2": "SmolLM2-135M"}


def speed(record: dict[str, Any]) -> list[str]:
    """Both engines, one line each and size; where our time goes."""
    lines = [
        f"A whole training step (loss, backward, Adam), float32, {record['threads']} CPU threads, BatchTopK with "
        f"{record['active']} active features a",
        "layer, same activations, same run, each engine's own trainer in an environment of its own. *Lean*: its step without",
        "anything that its API lets one leave out, and with a fused optimiser.",
        "",
        "| CLT | engine | tokens a step | tokens/s | peak memory |",
        "|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        size = case["case"]
        name = f"{size['layers']}×{size['features']}, width {size['width']}"
        measured = [("this engine", case["ours"]), ("this engine", case["ours_at_peer_batch"])]
        measured += [("decode-clt 0.0.1", case["peer"]["trainer"]), ("decode-clt 0.0.1, lean", case["peer"]["lean"])]
        for engine, found in measured:
            lines.append(
                f"| {name} | {engine} | {found['batch']} | {found['tokens_per_second']:.0f} | {found['peak_gb']:.1f} GB |"
            )
        faster, same = case["times_faster"], case["times_faster_same_batch"]
        ratio = f"**{faster['trainer']:.0f}×** (lean: {faster['lean']:.0f}×)"
        ratio += f"; same batch {same['trainer']:.0f}× ({same['lean']:.0f}×)"
        lines.append(f"| {name} | ratio | | {ratio} | {case['times_less_memory']:.1f}× less |")
    return [*lines, "", *_phases([case["ours"] for case in record["cases"]])]


def cuda(record: dict[str, Any]) -> list[str]:
    """Ours on a GPU, by batch."""
    size = record["cases"][0]["case"]
    lines = [
        f"On a GPU, {size['layers']}×{size['features']}, width {size['width']}, bfloat16 weights:",
        "",
        "| tokens a step | tokens/s | peak memory |",
        "|---|---|---|",
    ]
    runs = [case["ours"] for case in record["cases"]]
    lines += [f"| {one['batch']} | {one['tokens_per_second']:.0f} | {one['peak_gb']:.1f} GB |" for one in runs]
    return [*lines, "", *_phases(runs)]


def _phases(runs: list[dict[str, Any]]) -> list[str]:
    """Milliseconds and the share of it that the floor takes."""
    lines = []
    for one in runs:
        parts = [
            f"{line['phase']} {line['ms']:.0f}"
            + (f" ({line['floor_ms'] / line['ms']:.0%})" if line["floor_ms"] else "")
            for line in one["phases"]
        ]
        lines.append(
            f"- Step of {one['batch']} tokens, ms a phase (the machine's floor as a share): {', '.join(parts)}."
        )
    return [*lines, ""]


def quality(record: dict[str, Any]) -> list[str]:
    """Both engines on each set of activations, by their recipe and at their best learning rate."""
    lines = [
        "Same activations in the same order, same steps, same features and L0; measured on tokens that neither saw, from",
        "files in circuit-tracer's layout. *Best*: the best of the same learning rates for both, chosen on other tokens.",
        "",
        "| activations of | engine | learning rate | L0 | NMSE | graph replacement | completeness | top-1 | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, data in record["data"].items():
        for engine, by_setting in data["shown"].items():
            for setting, found in by_setting.items():
                graphs, replaced = found["graphs"], found["replacement"]
                values = [
                    f"{found['training']['rate']:.1e}",
                    f"{found['l0']:.1f}",
                    f"{found['nmse']:.4f}",
                    f"{graphs['replacement']:.3f}",
                    f"{graphs['completeness']:.3f}",
                    f"{replaced['top1']:.1%}",
                    f"{replaced['kl']:.3f}",
                ]
                what = f"{'this engine' if engine == 'ours' else 'decode-clt 0.0.1'}, {setting}"
                what += ", in our space" if found["space"] == "scaled" else ""
                lines.append(f"| {SETS[name]} | {what} | " + " | ".join(values) + " |")
    budgets = [
        f"{SETS[name]}: {data['budget']['tokens']} tokens in batches of {data['budget']['batch']}, "
        f"{data['budget']['features']} features a layer, {data['budget']['active']} active"
        for name, data in record["data"].items()
    ]
    return [*lines, "", f"Budgets: {'; '.join(budgets)}.", ""]


def rates(record: dict[str, Any]) -> list[str]:
    """How far the default learning rate is from the best one tried, by rule and budget."""
    lines = [
        "The default learning rate against half and twice of it: error on tokens that were not trained on, mean and 95 %",
        "interval over seeds. *Above the best*: by how much the default's error is above the lowest of the three.",
        "",
        "| activations of | rule | steps | default rate | NMSE | at half | at twice | above the best | active "
        "| never active (in the emptiest layer) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, data in record["data"].items():
        for case in data["cases"]:
            by_multiple = {one["multiple"]: one for one in case["tried"]}
            default = by_multiple[1.0]
            values = [
                f"{default['rate']:.1e}",
                *(_interval(by_multiple[multiple]) for multiple in (1.0, 0.5, 2.0)),
                f"{case['above_best']:.1%}",
                f"{default['active']:.1f} of {data['budget']['active']:g}",
                f"{default['never_active']:.1%} ({default['emptiest']:.1%})",
            ]
            lines.append(f"| {SETS[name]} | {case['rule']} | {case['steps']} | " + " | ".join(values) + " |")
    budgets = [
        f"{SETS[name]}: first {data['budget']['layers']} layers, {data['budget']['features']} features a layer, "
        f"{data['budget']['batch']} tokens a step, "
        f"{' and '.join(str(len(seeds)) for seeds in dict.fromkeys(tuple(case['seeds']) for case in data['cases']))} seeds"
        for name, data in record["data"].items()
    ]
    return [*lines, "", f"Budgets: {'; '.join(budgets)}.", ""]


def _interval(found: dict[str, Any]) -> str:
    return "broke" if found["error"] is None else f"{found['error']:.4f} ± {found['half_interval'] or 0:.4f}"


def kinds(record: dict[str, Any]) -> list[str]:
    """Kinds of autoencoders, one line each; accuracies are means over tasks."""
    budget, about = record["budget"], record["about"]
    rows = []
    for name, kind in record["kinds"].items():
        mean = kind["mean"]
        files = mean["nmse"]["mean"] / mean["nmse_in_training"]["mean"] - 1
        rows.append([
            name.replace("_", " "), f"{mean['l0']['mean']:.1f}", _plus_minus(mean["nmse"], ".4f"), f"{files:+.2%}",
            f"{mean['nmse_first']['mean']:.3f}", f"{mean['never_active']['mean']:.1%}",
            *(_plus_minus(mean[f"probing_{k}"], ".1%") for k in ("1", "5", "all")), f"{mean['seconds']['mean']:.0f}",
        ])  # fmt: skip
    for name, tasks in record["baselines"].items():
        shares = [f"{sum(task[k] for task in tasks.values()) / len(tasks):.1%}" for k in ("1", "5", "all")]
        rows.append([name, *[""] * 5, *shares, ""])
    first = budget["features"] // 16
    head = [
        "kind",
        "L0",
        "NMSE",
        "files",
        f"first {first} alone",
        "never active",
        "probe, 1 feature",
        "5",
        "all",
        "seconds",
    ]
    seeds = len(record["seeds"])
    return [
        f"SmolLM2-135M's residual stream after layer {about['layer']}: {budget['steps']} steps of {budget['batch']} tokens, "
        f"{budget['features']} features, {budget['active']:g} active; mean and 95 % interval over {seeds} seeds, on documents",
        "that were not trained on. *Files*: error that exporting adds. *First alone*: error with all other features left out.",
        f"*Probe*: mean accuracy over {len(about['tasks'])} questions, half of the answers are yes.",
        "",
        *table(head, rows),
    ]


def _plus_minus(found: dict[str, float], shown: str) -> str:
    return f"{found['mean']:{shown}} ± {found['half_interval']:{shown}}"


def export(record: dict[str, Any]) -> list[str]:
    """What files keep, by kind and rule."""
    rows = []
    for name, kept in record["export"].items():
        before, after = kept["trained"], kept["exported"]
        kl = "" if before["kl"] is None else f"{before['kl']:.3f} → {after['kl']:.3f}"
        nmse = f"{before['nmse']:.4f} → {after['nmse']:.4f}"
        rows.append(
            [name.replace("-", ", "), nmse, f"{kept['loss']:+.2%}", f"{before['l0']:.1f} → {after['l0']:.1f}", kl]
        )
    run = record["run"]
    return [
        f"The embedded model, {run['steps']} steps of {run['batch']} tokens, {run['features']} features a layer, "
        f"{run['active']:g} active: as trained → as the files are read, on held-out tokens.",
        "",
        *table(["kind, rule", "NMSE", "", "active features", "KL, all MLPs replaced"], rows),
    ]


def warm_start(record: dict[str, Any]) -> list[str]:
    """Cold and warm runs on a fine-tuned model."""
    rows = []
    for run in record["runs"]:
        values = [run["base_on_tuned"], *run["cold"].values(), *run["warm"].values()]
        rows.append([str(run["seed"]), *(f"{value:.4f}" for value in values)])
    one = record["runs"][0]
    head = ["seed", "base dictionary as it is", *(f"cold, {steps} steps" for steps in one["cold"])]
    return [
        "NMSE on held-out statements of the embedded model, fine-tuned on statements with swapped cities.",
        "",
        *table([*head, *(f"warm, {steps}" for steps in one["warm"])], rows),
    ]


def roofline(record: dict[str, Any]) -> list[str]:
    """The least time of a step, and where it goes."""
    cases = record["cases"]
    measured = (
        "no GPU has confirmed or refuted it yet" if record["measured"] is None else "measured beside it in the record"
    )
    rows = [
        [one["name"], f"{one['active']:g}", str(one["operations"]), str(one["waits"]), str(one["host_bytes"]),
         f"{one['ms']:.1f}", f"{one['ms_cached']:.1f}"]
        for one in cases
    ]  # fmt: skip
    phases = [
        [phase["phase"], f"{phase['tflop']:.2f}", f"{phase['gb']:.1f}", f"{phase['ms']:.1f}"]
        for phase in cases[0]["phases"]
    ]
    head = ["step", "k", "operations", "waits", "bytes to the host", "ms", "ms, rows read once"]
    return [
        f"Counted, not timed: operations and bytes of the preset gpt2's step, over the rates of an H200; {measured}.",
        "",
        *table(head, rows),
        "",
        *table([f"phase ({cases[0]['name']})", "TFLOP", "GB", "ms"], phases),
    ]
