"""The tables of a report, in Markdown: a number with the reach of its 95 % interval wherever there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from circuit_tracer.training.evaluation.intervals import Estimate
from circuit_tracer.training.evaluation.replacement import MEAN, ZERO
from circuit_tracer.training.evaluation.results import (
    DICTIONARY,
    PER_LAYER,
    RANDOM,
    Estimates,
    Evaluation,
    mean_of_layers,
)

TITLES = {DICTIONARY: "this dictionary", RANDOM: "random dictionary", PER_LAYER: "dictionary beside"}
ABLATIONS = {ZERO: "MLPs zero", MEAN: "MLPs mean"}
STREAM_ABLATIONS = {ZERO: "stream zero", MEAN: "stream mean"}


class Row(NamedTuple):
    """A line of the summary: the estimate of this name, as a share or a plain number with so many decimals."""

    name: str
    title: str
    share: bool = False
    decimals: int = 4

    def text(self, found: Estimates) -> str:
        """The number, and how far its interval reaches to either side."""
        return "–" if self.name not in found else with_reach(found[self.name], self.share, self.decimals)


RECONSTRUCTION = (
    Row("mean_nmse", "NMSE, mean over layers"),
    Row("total_l0", "active features a token (L0), all layers", decimals=1),
)
REPLACED = (
    Row("cross_entropy", "cross-entropy"),
    Row("kl", "KL(model \\|\\| replaced)"),
    Row("top1", "top-1 agreement", True),
    Row("top1_filtered", "top-1 agreement, filtered", True),
    Row("ce_recovered", "cross-entropy recovered, of zero ablation", True),
    Row("ce_recovered_from_mean", "cross-entropy recovered, of mean ablation", True),
)
GRAPHS = (
    Row("replacement", "graph replacement score"),
    Row("completeness", "graph completeness score"),
    Row("edges_live", "edges against ablation, all live (Spearman)"),
    Row("edges_window", "edges against ablation, three MLPs held (Spearman)"),
    Row("groups_live", "groups of 8 features against ablation (Spearman)"),
    Row("top_group_moves", "logit moved by a graph's 8 strongest features", decimals=2),
    Row("random_group_moves", "logit moved by 8 random features", decimals=2),
)


def summary_table(evaluation: Evaluation) -> str:
    """A row a number, a column a dictionary or ablation; "a ± b" is the 95 % interval from a − b to a + b."""
    results = evaluation.results
    spliced = bool(evaluation.spliced_ablations)
    ablated: Mapping[str, Estimates] = (
        {name: mean_of_layers(layers) for name, layers in evaluation.spliced_ablations.items()}
        if spliced
        else {name: one.estimates for name, one in evaluation.ablations.items()}
    )
    found = [result.estimates for result in results.values()]

    def lines(rows: Iterable[Row]) -> list[list[str]]:
        return [[row.title, *(row.text(one) for one in (*found, *ablated.values()))] for row in rows]

    rows = lines(RECONSTRUCTION)
    never = [_share(result.reconstruction.dead_share) for result in results.values()]
    rows.append(["features never active", *never, *["–"] * len(ablated)])
    if evaluation.model is not None:
        rows += lines(REPLACED)
    if evaluation.results[DICTIONARY].graphs:
        rows += lines(row for row in GRAPHS if row.name in found[0])
    names = STREAM_ABLATIONS if spliced else ABLATIONS
    return table(["", *(TITLES[name] for name in results), *(names[name] for name in ablated)], rows)


def difference_table(evaluation: Evaluation) -> str:
    """This dictionary minus the one beside, over the same tokens and prompts."""
    found = evaluation.differences[PER_LAYER]
    rows = [row for row in (*RECONSTRUCTION, *REPLACED, *GRAPHS) if row.name in found]
    titles = ["", "this dictionary minus the one beside", "the interval leaves out 0"]
    return table(titles, [[row.title, row.text(found), _apart(found[row.name])] for row in rows])


def layer_table(evaluation: Evaluation) -> str:
    """A row a layer that has features."""
    found = evaluation.results[DICTIONARY].reconstruction
    others = {name: one.reconstruction for name, one in evaluation.results.items() if name != DICTIONARY}
    titles = ["layer", "NMSE", "L0", "never active", "highest density"]
    titles += [f"{column}, {TITLES[name]}" for name in others for column in ("NMSE", "L0")]
    rows = []
    for index, layer in enumerate(evaluation.conditions["layers"]):
        if not found.features[index]:
            continue
        never = f"{found.never_active[index]} of {found.features[index]}"
        row = [str(layer), number(found.nmse[index]), f"{found.l0[index]:.2f}", never, _share(found.max_density[index])]
        for other in others.values():
            row += [number(other.nmse[index]), f"{other.l0[index]:.2f}"]
        rows.append(row)
    return table(titles, rows)


def splice_table(evaluation: Evaluation) -> str:
    """An autoencoder in the stream, by layer."""
    rows = (*REPLACED[:3], *REPLACED[4:])
    layers = zip(evaluation.conditions["layers"], evaluation.results[DICTIONARY].spliced, strict=True)
    lines = [[str(layer), *(row.text(one.estimates) for row in rows)] for layer, one in layers]
    return table(["layer", *(row.title for row in rows)], lines)


def graph_table(evaluation: Evaluation) -> str:
    """Named prompts one by one, and what could not be traced."""
    results = evaluation.results
    rows = []
    for place, graph in enumerate(results[DICTIONARY].graphs):
        if not graph.held_out:
            cells = [graph.prompt.replace("|", "\\|").replace("\n", " ")]
            for result in results.values():
                scores = (math.nan, math.nan, math.nan)
                if place < len(result.graphs):  # of a random dictionary, the first prompts only
                    one = result.graphs[place]
                    scores = (one.replacement, one.completeness, one.edges_live)
                cells += map(number, scores)
            rows.append(cells)
    titles = ["prompt"]
    for name in results:
        titles += [f"{column}, {TITLES[name]}" for column in ("replacement", "completeness", "edges")]
    problems = [
        f"- {TITLES[name]}, {graph.prompt!r}: {graph.problem}"
        for name, result in results.items()
        for graph in result.graphs
        if graph.problem is not None
    ]
    notes = ["Not traced:\n" + "\n".join(problems)] if problems else []
    return "\n\n".join([*([table(titles, rows)] if rows else []), *notes])


def with_reach(found: Estimate, share: bool, decimals: int = 4) -> str:
    """ "0.1234 ± 0.0056", or "12.3% ± 0.6%"; without an interval the number alone."""
    if not math.isfinite(found.value):
        return "–"
    write: Callable[[float], str] = _share if share else lambda value: f"{value:.{decimals}f}"
    reach = found.value - found.interval[0]
    return write(found.value) + (f" ± {write(reach)}" if math.isfinite(reach) else "")


def number(value: float) -> str:
    """Four decimals, or a dash."""
    return f"{value:.4f}" if math.isfinite(value) else "–"


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "–"


def _apart(found: Estimate) -> str:
    low, high = found.interval
    return "–" if not math.isfinite(low) else "yes" if low > 0 or high < 0 else "no"
