"""What a graph amounts to, as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def as_text(summary: dict[str, Any], files: Sequence[Path] = (), verbose: bool = False) -> str:
    """The summary for people, a line each."""
    targets = "  ".join(f"{target['text']!r} {target['weight']:.3f}" for target in summary["targets"])
    active, noun, scored = summary["active_features"], "features", ""
    if "neurons" in summary:
        scored = " (other neurons count as errors)"
        noun = "features and neurons"
    if summary.get("kind") == "neurons":
        active, noun = summary["neurons"]["of"], "neurons"
    lines = [
        ("prompt", repr(summary["prompt"])),
        ("targets", targets),
        (
            "nodes",
            f"{summary['feature_nodes']:,} of {active:,} active {noun}, {summary['nodes']:,} in all, "
            f"{summary['edges']:,} edges",
        ),
        (
            "scores",
            f"replacement {summary['replacement_score']:.3f}, completeness {summary['completeness_score']:.3f}{scored}",
        ),
    ]
    if summary.get("interrupted"):
        more = "; attribute --resume goes on" if summary["can_go_on"] else ""
        lines.insert(0, ("state", f"interrupted: {summary['done']} have their edges{more}"))
    if "neurons" in summary:
        of, share = summary["neurons"]["of"], summary["neurons"]["share_of_effect"]
        kept = f"the nodes hold {share:.1%} of the effects of all {of:,}; the rest are in other neurons"
        lines.append(("neurons", kept))
    elif "nmse" in summary:
        nmse, l0 = summary["nmse"], summary["l0"]
        worst = max(range(len(nmse)), key=nmse.__getitem__)
        lines.append(
            (
                "transcoder",
                f"NMSE {sum(nmse) / len(nmse):.3f} on average, {nmse[worst]:.3f} in layer {worst}; "
                f"L0 {sum(l0) / len(l0):.1f} a layer and position",
            )
        )
    if summary["worst_residual"] is not None:
        lines.append(("residual", f"{summary['worst_residual']:.1e}, the worst of any row (relative)"))
    if verbose and "memory_plan" in summary:
        lines.append(("memory", summary["memory_plan"]))
    lines += [("warning", text) for text in summary.get("warnings", ())]
    if "seconds" in summary:
        lines.append(("time", f"{summary['seconds']:.2f} s"))
    lines += [("wrote", str(path)) for path in files]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
