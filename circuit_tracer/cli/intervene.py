"""`circuit-tracer intervene`: change features and heads on a prompt and see what the model then says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.edit_options import EditOptions, Heads, read_heads
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.interventions import Edit, HeadEdit, Outcome


def intervene(
    *,
    prompt: Annotated[str | None, options.text("-p", "--prompt", help="Text (or --graph).")] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            "-g", "--graph", autocompletion=graphs, help="Take the prompt of this graph, and check that it fits."
        ),
    ] = None,
    chosen: ModelOptions,
    changes: EditOptions,
    head: Heads = None,
    semantics: Annotated[
        Literal["direct", "constrained", "iterative"],
        typer.Option(
            "--semantics", help="What reacts to a change: everything (direct), or see interventions/README.md."
        ),
    ] = "direct",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Range of constrained or iterative layers, such as 3-8.")
    ] = None,
    live_attention: Annotated[
        bool, typer.Option("--live-attention", help="Attention patterns react; by default they stay.")
    ] = False,
    freeze_norms: Annotated[
        bool | None,
        typer.Option("--freeze-norms/--live-norms", help="Default: frozen when all layers are constrained."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens and features to show.")] = 5,
    json: options.Json = False,
) -> None:
    """Change features on a prompt: set, scale, ablate, add, take from another prompt. Change heads: --head L5H3=zero.

    FEATURES are LAYER/FEATURE[@PLACE], separated by commas, or names of supernodes: --scale 1/45@6=-1. HEADS are
    L5H3[@PLACE], separated by commas: --head L5H3,L5H4@6=mean.
    """
    if (prompt is None) == (graph is None):
        raise InputError("give either --prompt TEXT or --graph FILE")
    edits: list[Edit | HeadEdit] = [*changes.read(), *read_heads(head)]
    if not edits:
        raise InputError(
            "say what to change: --set, --scale, --ablate, --add, --take or --head, such as --ablate 1/45@6"
        )
    from circuit_tracer.cli.serve import chosen_labels
    from circuit_tracer.interventions import Semantics, apply_edits

    meaning = Semantics(semantics, layer_range(layers), not live_attention, freeze_norms)
    subject: Any = prompt
    labels = chosen_labels(None, chosen.shipped) or {}
    if graph is not None:
        from circuit_tracer.graph.files.formats import read_graph

        subject = read_graph(graph)
        labels |= subject.labels
    loaded = chosen.open()
    outcome = apply_edits(loaded, subject, edits, meaning)
    found = describe(outcome, str(meaning), top, labels)
    typer.echo(options.dump(found) if json else _text(found, chosen.of_neurons))


def layer_range(text: str | None) -> range | None:
    """Layers of "3-8" or "5"; InputError for anything else."""
    if text is None:
        return None
    first, dash, last = text.partition("-")
    try:
        return range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise InputError(f"--layers is {text!r}; write a range such as 3-8, or one layer") from error


def describe(outcome: Outcome, semantics: str, top: int, labels: Mapping[tuple[int, int], str]) -> dict[str, Any]:
    """An outcome as JSON values. labels: of features, by (layer, index)."""
    from circuit_tracer.models.tokenization import token_strings

    assert outcome.features is not None
    texts = token_strings(outcome.clean.ids, outcome.clean.model.tokenizer)
    return {
        "edits": [str(edit) for edit in outcome.edits],
        "semantics": semantics,
        "tokens": [token._asdict() for token in outcome.tokens(top)],
        "features": [
            {
                **feature._asdict(),
                "token": texts[feature.position or 0],
                "label": labels.get((feature.layer, feature.feature_idx)),
                "before": before,
                "after": after,
            }
            for feature, before, after in outcome.features.largest(top)
        ],
        "changed_features": int((outcome.features.change != 0).sum()),
    }


def _text(found: dict[str, Any], of_neurons: bool) -> str:
    from circuit_tracer.graph.words import neuron_name

    lines = [f"edits       {edit}" for edit in found["edits"]] + [f"semantics   {found['semantics']}", ""]
    lines.append(f"{'next token':<24}{'before':>10}{'after':>10}{'logit':>10}")
    for token in found["tokens"]:
        change = token["logit_after"] - token["logit_before"]
        lines.append(
            f"{token['text']!r:<24}{token['probability_before']:>10.4f}{token['probability_after']:>10.4f}{change:>+10.3f}"
        )
    moved = [feature for feature in found["features"] if feature["before"] != feature["after"]]
    lines += ["", f"{found['changed_features']:,} features changed{'; most:' if moved else ''}"]
    for feature in moved:
        place = f"{feature['layer']}/{feature['feature_idx']}@{feature['position']}"
        unnamed = neuron_name(feature["layer"], feature["feature_idx"]) if of_neurons else "feature"
        words = f"{feature['label'] or unnamed} at {feature['token']!r}"
        lines.append(f"{place:<24}{feature['before']:>10.4f}{feature['after']:>10.4f}  {words}")
    return "\n".join(lines)
