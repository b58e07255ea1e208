"""Where heads look, before and after an intervention: rows of patterns, and the scores that they are made from.

    found = measure_patterns(model, prompt, ablate((2, 6, 77)), [(5, 3, -1)], Semantics(freeze_attention=False))
    found.contrast(0, key=4, versus=2)      # log A(p, 4) - log A(p, 2), before and after

Letters: n rows, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.apply import AnyEdit, Experiment, clean_run, freeze_of, resolve_all, run_of
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit
from circuit_tracer.interventions.features.passes import require_finite
from circuit_tracer.interventions.features.semantics import Kind, Semantics, semantics_of
from circuit_tracer.interventions.heads.edits import HeadEdit
from circuit_tracer.interventions.heads.visits import head_visits
from circuit_tracer.models.indices import from_the_front, require_head
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import Visit, in_turn
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

Row = tuple[int, int, int]  # layer, head, query


@dataclass(frozen=True)
class PatternChanges:
    """Rows of patterns, each (n, P). scores: what the softmax is taken of, -inf at keys that the query does not see.

    Where attention is frozen, patterns stay, and scores are those that the changed queries and keys have.
    """

    rows: tuple[Row, ...]
    score_before: Tensor
    score_after: Tensor
    pattern_before: Tensor
    pattern_after: Tensor

    def contrast(self, row: int, key: int, versus: int | Literal["rest"]) -> tuple[float, float]:
        """(before, after) of score(key) - score(versus): for two keys log A(p, key) - log A(p, versus), exactly.

        versus "rest": the mean score of all other keys, weighted by the pattern before. Raises InputError for a key that the
        query does not see.
        """
        visible = torch.isfinite(self.score_before[row])
        for each in (key,) if versus == "rest" else (key, versus):
            if not 0 <= whole(each, "a key") < len(visible) or not visible[each]:
                (places,) = torch.nonzero(visible, as_tuple=True)
                layer, head, query = self.rows[row]
                raise InputError(
                    f"query {query} of L{layer}H{head} does not see key {each}; it sees {int(places[0])} to {int(places[-1])}"
                )
        if versus == "rest":
            weight = self.pattern_before[row].where(visible, 0).clone()
            weight[key] = 0
            if not (total := weight.sum()):
                raise InputError(
                    f"no other key than {key} has weight at query {self.rows[row][2]}; there is nothing to contrast"
                )
            weight /= total
        else:
            weight = torch.zeros_like(self.pattern_before[row])
            weight[versus] = 1
        before, after = (
            float(score[row, key] - (score[row].where(visible, 0) * weight).sum())
            for score in (self.score_before, self.score_after)
        )
        return before, after


@typed
@plain_torch()
@torch.no_grad()
def measure_patterns(
    model: Traceable,
    prompt: Prompt | Graph | CleanRun,
    edits: AnyEdit | Sequence[AnyEdit],
    rows: Sequence[Row],
    semantics: Semantics | Kind = "direct",
) -> PatternChanges:
    """Where heads look, (layer, head, query) each, without and with an intervention; arguments as of `apply_edits`.

    One pass beside the clean run. Norms of queries and keys within attention react, whatever the semantics freeze.

    Args:
        model: The replacement model.
        prompt: The prompt: text, token ids (P,), a graph, or a clean run done before.
        edits: One edit or several, which act together.
        rows: (layer, head, query) each.
        semantics: What reacts: "direct", "constrained", "iterative", or a `Semantics`.

    Returns:
        Patterns and scores before and after, (n, P) each.

    Raises:
        InputError: For a layer, head or query that does not exist.
    """
    meaning = semantics_of(semantics)
    clean = clean_run(model, prompt, meaning)
    places = tuple(_row(each, clean) for each in rows)
    freeze = freeze_of(meaning, clean)
    given = [[edits] if isinstance(edits, Edit | HeadEdit) else edits]
    carried = [Experiment(), *resolve_all(given, clean, freeze)]
    found: dict[tuple[str, int], Tensor] = {}
    changes = head_visits([each.heads for each in carried], model.parts.config.n_heads)
    visits = {**changes, **{site: in_turn(changes.get(site), _kept(site, places, found)) for site in _SITES}}
    final = run_of(carried, clean, meaning, freeze, visits)(clean.ids, copies=len(carried)).final
    require_finite(final)
    score, pattern = (
        torch.stack([found[site, layer][:, head, query] for layer, head, query in places], dim=1)
        if places
        else final.new_zeros(2, 0, clean.n_pos)
        for site in _SITES
    )
    score = unmasked(score, model.parts)
    return PatternChanges(places, score[0], score[1], pattern[0], pattern[1])


def unmasked(scores: Tensor, parts: ModelParts) -> Tensor:
    """Scores as the softmax has them, with -inf for what a mask puts at keys that a query does not see."""
    lowest = torch.finfo(getattr(torch, parts.config.dtype)).min  # what masks hold, added to the score
    return scores.where(scores > lowest / 2, -torch.inf)


_SITES = ("attn.hook_scores", "attn.hook_pattern")


def _kept(site: str, places: Sequence[Row], found: dict[tuple[str, int], Tensor]) -> Visit:
    """A visit that keeps activations (B, H, P, P) of the layers that are asked for."""
    wanted = {layer for layer, _, _ in places}

    def visit(layer: int, activation: Tensor) -> None:
        if layer in wanted:
            found[site, layer] = activation

    return visit


def _row(row: Row, clean: CleanRun) -> Row:
    try:
        layer, head, query = row
    except (TypeError, ValueError) as error:
        raise InputError(f"{shortened(row)} is no row of a pattern; give (layer, head, query)") from error
    config = clean.model.parts.config
    return *require_head(layer, head, config.n_layers, config.n_heads), from_the_front(query, clean.n_pos, "query")
