"""The numbers of a validation in words: what the graph explains, and what not to trust because of what.

Published values to hold them against (Circuit Tracing, 2025, an 18-layer model): influence ranks ablation effects with
Spearman 0.72; one layer behind a perturbation the cosine is about 0.8. The thresholds are below those, or at half of what
would be perfect; a sentence always carries the number, so that anyone can set others.
"""

from __future__ import annotations

from collections.abc import Iterator

from circuit_tracer.graph.validation import HeadTest, Measure, Measures, ScoreTest, Stability

MAX_RESIDUAL = 1e-3  # of the sum rule, relative
MAX_CONSTRAINED = 1e-2  # difference of an edge and its intervention, over the largest edge
MAX_ERRORS = 0.3  # share of influence
MAX_UNSELECTED = 0.2  # share of input mass
MAX_ATTENTION = 0.3  # share of a node's effect
MIN_SPEARMAN = 0.6
SLOPES = (0.5, 2.0)
MIN_COSINE = 0.7  # of the residual stream, one layer behind a perturbation
MIN_MLP_COSINE = 0.5  # of the MLP's own reaction
MIN_SUFFICIENCY = 0.5
MAX_SUFFICIENCY = 2.0  # of what is no probability, which may be far more without what is against it
MIN_NECESSITY = 0.5
MIN_STABILITY = 0.6
CONTROL_MARGIN = 0.1  # how much better than a control the graph must be


ERRORS = "reconstruction errors"
_READ: dict[Measure, str] = {
    "score": "The score is read as the graph explains it, linear in the stream: norms, and for either side the other, are as "
    "on the clean prompt.",
    "value": "The value is read as the graph explains it: with norms before it as on the clean prompt.",
}


def verdict(
    measures: Measures,
    stability: Stability,
    target: str,
    heads: HeadTest | None = None,
    scores: ScoreTest | None = None,
    measure: Measure = "probability",
    left_over: str = ERRORS,
) -> list[str]:
    """What was found, a sentence each; sentences whose numbers do not exist are left out. left_over: what the graph's error
    nodes are called.
    """
    accounting, live = measures.accounting, measures.effects["live"]
    held, circuit = measures.effects["constrained"], measures.circuit
    found = []
    if accounting.explained is not None:
        found.append(
            f"This graph explains {accounting.explained:.0%} of the influence on {target!r}: so much runs from tokens through "
            f"its {measures.n_features} kept features, the rest comes from {left_over} and from what was pruned."
        )
    if held.edges.worst is not None:
        found.append(
            f"With everything frozen, {held.edges.count} kept edges are what interventions do, to {held.edges.worst:.1e} of "
            "the largest."
        )
    if live.edges.spearman is not None and live.edges.slope is not None:
        found.append(
            f"In the real model, with nothing frozen, edges rank the effects of ablations with Spearman "
            f"{live.edges.spearman:.2f}; effects are {live.edges.slope:.2f} times as large as the edges say."
        )
    found.append(
        f"Without the circuit the {measure} of {target!r} goes from {circuit['live'].clean:.2f} to "
        f"{circuit['live'].without:.2f} in the real model{_others(measures)}; with only the circuit and attention frozen it is "
        f"{circuit['constrained'].only:.2f}, with nothing {circuit['constrained'].nothing:.2f}."
    )
    found += [_READ[measure]] if measure in _READ else []
    found += [] if heads is None else _of_heads(heads)
    found += [] if scores is None else _of_scores(scores)
    if stability.nodes is not None and stability.edges is not None:
        found.append(
            f"At other pruning thresholds {stability.nodes:.0%} of its features and {stability.edges:.0%} of its edges stay."
        )
    return found


def _of_heads(heads: HeadTest) -> Iterator[str]:
    for part, agreements in heads.agreement.items():
        live = agreements.get("live")
        if live is not None and live.spearman is not None and live.slope is not None:
            yield (
                f"Of what edges owe to {live.count} {part} heads, the real model passes on {live.slope:.2f} times as much "
                f"(Spearman {live.spearman:.2f})."
            )


def _of_scores(scores: ScoreTest) -> Iterator[str]:
    live = scores.agreement.get("live")
    if live is not None and live.spearman is not None and live.slope is not None:
        yield (
            f"Of what {live.count} nodes are said to carry of scores of attention, the real model loses {live.slope:.2f} times "
            f"as much without them (Spearman {live.spearman:.2f})."
        )


def distrust(
    measures: Measures,
    stability: Stability,
    controls: dict[str, Measures],
    measure: Measure = "probability",
    left_over: str = ERRORS,
) -> list[str]:
    """What not to trust, a sentence each; empty if nothing stands out. left_over: as in `verdict`."""
    return [
        *_of_the_arithmetic(measures),
        *_of_what_is_missing(measures, left_over),
        *_of_effects(measures),
        *_of_the_dictionary(measures),
        *_of_the_circuit(measures, measure),
        *_of_choices(stability),
        *(sentence for name, control in controls.items() for sentence in _of_a_control(measures, name, control)),
    ]


def _others(measures: Measures) -> str:
    others = measures.circuit["live"].without_others
    return "" if others is None else f" (without other features instead: {others:.2f})"


def _of_the_arithmetic(measures: Measures) -> Iterator[str]:
    residual, worst = measures.accounting.residual, measures.effects["constrained"].edges.worst
    if residual is not None and residual > MAX_RESIDUAL:
        yield (
            f"Do not trust any number of it: the sum rule is off by {residual:.1e}. Trace again in float32 or float64, with "
            "the weights that you have now."
        )
    if worst is not None and worst > MAX_CONSTRAINED:
        yield (
            f"Do not trust the edges: with everything frozen they differ from interventions by up to {worst:.1e} of the "
            "largest. Trace again with this model and dictionary."
        )


def _of_what_is_missing(measures: Measures, left_over: str) -> Iterator[str]:
    accounting = measures.accounting
    if accounting.explained is not None and accounting.explained < 1 - MAX_ERRORS:
        errors = "" if accounting.errors is None else f", {accounting.errors:.0%} in {left_over} even before pruning"
        yield (
            f"Do not trust it to be the whole story, because {1 - accounting.explained:.0%} of the influence begins in "
            f"{left_over} or in what was pruned{errors}."
        )
    if accounting.unselected is not None and accounting.unselected > MAX_UNSELECTED:
        yield (
            f"Do not trust what looks absent, because {accounting.unselected:.0%} of the input mass comes from active features "
            "that were given no row. Trace with more feature nodes."
        )


def _of_effects(measures: Measures) -> Iterator[str]:
    live, attention = measures.effects["live"].edges, measures.accounting.attention
    if live.spearman is not None and live.spearman < MIN_SPEARMAN:
        yield (
            f"Do not trust which edge is the stronger, because in the real model edges rank effects with Spearman "
            f"{live.spearman:.2f} only."
        )
    if live.slope is not None and not SLOPES[0] <= live.slope <= SLOPES[1]:
        yield (
            f"Do not read edges as sizes of effects, because in the real model effects are {live.slope:.2f} times as large."
        )
    if attention is not None and attention > MAX_ATTENTION:
        yield (
            f"Do not trust paths between tokens, because {attention:.0%} of what ablations do is due to attention moving, "
            "which the graph holds frozen."
        )


def _of_the_dictionary(measures: Measures) -> Iterator[str]:
    curve = next((each for each in measures.curves if each.kind == "feature" and each.count), None)
    if curve is None:
        return
    stream, mlp = curve.cosine[0], curve.mlp_cosine[0]
    if stream is not None and stream < MIN_COSINE:
        yield (
            f"Do not trust chains of features, because one layer behind a perturbation the dictionary's network and the model "
            f"have changed in different directions (cosine {stream:.2f})."
        )
    if mlp is not None and mlp < MIN_MLP_COSINE:
        yield (
            f"Do not trust that features feed features as the MLPs do, because the next MLP reacts to a perturbation otherwise "
            f"than its features (cosine of the reactions {mlp:.2f}); what is right for this prompt need not be for others."
        )


def _of_the_circuit(measures: Measures, measure: Measure) -> Iterator[str]:
    live, held = measures.circuit["live"], measures.circuit["constrained"]
    necessity, others, idle = live.necessity, live.necessity_of_others, held.sufficiency_of_nothing
    if necessity is None or held.sufficiency is None:
        yield (
            "Do not trust that the model needs this circuit, or that it is enough, because the model gives the target no "
            f"{measure} at all (0 in its number format), of which there is no share. Trace "
            f"{'a target that is more likely' if measure == 'probability' else 'another target'}."
        )
        return
    if necessity < MIN_NECESSITY:
        yield (
            f"Do not trust that the model needs this circuit, because without it the {measure} goes from {live.clean:.3g} to "
            f"{live.without:.3g}: {necessity:.0%} of it is lost, no more."
        )
    elif others is not None and others > necessity - CONTROL_MARGIN:
        yield (
            f"Do not trust that this circuit is special, because as much of the {measure} goes with as many other features "
            f"(left are {live.without_others:.2f} against {live.without:.2f})."
        )
    too_much = measure != "probability" and held.sufficiency > MAX_SUFFICIENCY
    if held.sufficiency < MIN_SUFFICIENCY or too_much:
        yield (
            f"Do not trust that this circuit is {'all of it' if too_much else 'enough'}, because alone it gives "
            f"{held.sufficiency:.0%} of the {measure}, even with attention frozen."
        )
    elif idle is not None and idle > held.sufficiency - CONTROL_MARGIN:
        yield (
            f"Do not take it for evidence of this circuit that it is enough, because {idle:.0%} of the {measure} is there with "
            "neither features nor errors: tokens and biases give it by themselves."
        )


def _of_choices(stability: Stability) -> Iterator[str]:
    if stability.nodes is not None and stability.nodes < MIN_STABILITY:
        yield (
            f"Do not trust single nodes, because only {stability.nodes:.0%} of them stay at other pruning thresholds; look at "
            "the stability of each."
        )
    for rows in stability.rows:
        if rows.nodes is not None and rows.nodes < MIN_STABILITY:
            yield (
                f"Do not trust the choice of nodes, because with {rows.rows} rows the graph shares {rows.nodes:.0%} of its "
                "kept features only."
            )


def _of_a_control(measures: Measures, name: str, control: Measures) -> Iterator[str]:
    ours, theirs = measures.effects["live"].edges.spearman, control.effects["live"].edges.spearman
    if ours is not None and theirs is not None and theirs > ours - CONTROL_MARGIN:
        yield (
            f"Do not take the ranking of edges for evidence of this dictionary, because the {name} one ranks them as well "
            f"(Spearman {theirs:.2f} against {ours:.2f})."
        )
    ours, theirs = measures.accounting.explained, control.accounting.explained
    if ours is not None and theirs is not None and theirs > ours - CONTROL_MARGIN:
        yield (
            f"Do not take the share explained for evidence of this dictionary, because the {name} one explains "
            f"{theirs:.0%} against {ours:.0%}."
        )
