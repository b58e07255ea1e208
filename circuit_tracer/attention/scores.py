"""Why a head looks where it looks: its score from both sides, over all active features, errors, tokens and constants.

The score of (layer, head, query, key) is a product of what two tokens hold. With the other side as it is, it is linear in the
stream that enters the layer, so one row of the sweep says what each source contributes through this side (`Marginals`). With a
row for each of the d numbers of a query, and of a key, it is known of every pair (`ScorePairs`).

Letters: D d_model, d d_head, n keys, T rows, S + B columns (`ScoreSources`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.attention.pairs import Factor, ScorePairs
from circuit_tracer.attention.prompt_scores import PromptScores
from circuit_tracer.attention.score_explanation import Marginals, ScoreExplanation
from circuit_tracer.attention.score_sources import BIASES, ScoreSources
from circuit_tracer.attribution.contrast import Contrast, contrast_of
from circuit_tracer.attribution.prompt import CONSTANTS
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import NumericalError
from circuit_tracer.graph.balance import allowed_gap
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.models.layer_scores import LayerScores
from circuit_tracer.models.surroundings import plain_torch

BYTES_IN_FLIGHT = 2**28  # of rows of gradients


@typed
@plain_torch()
@torch.no_grad()
def explain_score(
    graph: Graph,
    model: Traceable,
    layer: int,
    head: int,
    query: int,
    key: int,
    versus: int | str | None = None,
    *,
    pairs: bool = True,
) -> ScoreExplanation:
    """Why `head` of `layer` looks from position `query` at `key`, on the graph's prompt.

    Positions may be counted from the end. Sources are all features that were active, nodes of the graph or not.

    The first call about a graph runs the model; the prompt then stays in memory (`PromptScores`).

    Args:
        graph: The attribution graph.
        model: The one that the graph was traced with.
        layer: Of the head.
        head: Its number.
        query: Position that looks; negative ones count from the end.
        key: Position that is looked at.
        versus: Rather than at another key, or than at the "rest" that the query sees.
        pairs: Whether to take the pairs apart too, which takes 2 d rows instead of 2.

    Returns:
        The score with the marginals of query and key, and their pairs.

    Raises:
        InputError: For a place that does not exist, or that the query does not see.
        CompatibilityError: For a graph of another model or dictionary.
        NumericalError: If the marginals miss the score by more than what is promised for the model's dtype.

    Examples:
        >>> from circuit_tracer import explain_score
        >>> why = explain_score(graph, model, layer=1, head=0, query=-1, key=7, versus="rest")
        >>> [contributor.id for contributor in why.strongest(1)["query"]]
        ['0_3_8']
    """
    whole(layer, "layer")
    prompt = PromptScores.of(graph, model)
    scores = prompt.scores(layer)
    contrast = contrast_of(scores, head, query, key, versus)
    sources, value = ScoreSources.of(graph, layer), float(contrast.value(scores))
    label = contrast.label(layer, graph.token_texts)
    sides, products = _marginals(prompt, scores, contrast, sources, graph.selected_features.cpu().long())
    log_pattern = scores.log_pattern(head, contrast.query).cpu()
    return ScoreExplanation(
        layer=layer,
        head=head,
        query=contrast.query,
        key=contrast.key,
        versus=contrast.versus,  # type: ignore[arg-type]
        label=label,
        score=value,
        log_attention=float(log_pattern[contrast.key]),
        pattern=log_pattern.exp(),
        query_side=sides[0],
        key_side=sides[1],
        pairs=_pairs(prompt, scores, contrast, sources) if pairs else None,
        residual=_require_sums(sides, products, value, label, graph, prompt),
    )


def _marginals(
    prompt: PromptScores, scores: LayerScores, contrast: Contrast, sources: ScoreSources, selected: Tensor
) -> tuple[tuple[Marginals, Marginals], float]:
    """Of the query's side and the key's: a row each; and the mass of the products of single numbers in them."""
    vector, own = contrast.query_side(scores)
    vectors, constants = contrast.key_side(scores)
    reads = _reads(
        scores.layer,
        torch.tensor([0] + [1] * len(contrast.keys)),
        torch.tensor([contrast.query, *contrast.keys]),
        torch.cat([vector[None], vectors]),
    )
    rows = _rows(prompt, reads, torch.stack([own, constants.sum()]), sources).cpu()
    sizes = (reads.vector.to(scores.stream) * scores.stream[reads.position]).abs().sum(1)
    products = [sizes[0] + own.abs(), sizes[1:].sum() + constants.abs().sum(), contrast.mass(scores)]
    sides = Marginals(sources, rows[0], contrast.query, selected), Marginals(sources, rows[1], contrast.key, selected)
    return sides, float(torch.stack(products).max())


def _pairs(prompt: PromptScores, scores: LayerScores, contrast: Contrast, sources: ScoreSources) -> ScorePairs:
    """A row for each of the d numbers of the query, and of the keys, weighted."""
    each = torch.eye(scores.query.shape[2], dtype=scores.query.dtype, device=scores.query.device)
    row = torch.arange(len(each))
    vectors, own = scores.query_reads(contrast.head, contrast.query, each)
    position = torch.full_like(row, contrast.query)
    query = _rows(prompt, _reads(scores.layer, row, position, vectors), own, sources)
    vectors_ndD, constants = _key_maps(scores, contrast, each)
    reads = _reads(
        scores.layer,
        row.repeat(len(contrast.keys)),
        torch.tensor(contrast.keys).repeat_interleave(len(each)),
        vectors_ndD.flatten(0, 1),
    )
    key = _rows(prompt, reads, constants, sources)
    return ScorePairs(sources, Factor.of(query, contrast.query), Factor.of(key, contrast.key))


def _key_maps(scores: LayerScores, contrast: Contrast, each_dd: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (n, d, D) that read each number of every key, weighted and scaled; constants (d,), summed over keys."""
    weights = contrast.weights * scores.scaling
    if len(contrast.keys) <= len(each_dd):  # whichever takes fewer passes of autograd
        found = [
            scores.key_reads(contrast.head, key, weight * each_dd)
            for key, weight in zip(contrast.keys, weights, strict=True)
        ]
        return torch.stack([vectors for vectors, _ in found]), torch.stack([own for _, own in found]).sum(0)
    found = [scores.keys_reads(contrast.head, contrast.keys, weights[:, None] * one) for one in each_dd]
    return torch.stack([vectors for vectors, _ in found], dim=1), torch.stack([own.sum() for _, own in found])


def _reads(layer: int, row: Tensor, position: Tensor, vector: Tensor) -> StreamReads:
    """Of the stream that enters a layer."""
    entering = torch.ones(len(row), dtype=torch.bool)
    return StreamReads(row, torch.full_like(row, layer), entering, position, vector.cpu())


def _rows(prompt: PromptScores, reads: StreamReads, own_T: Tensor, sources: ScoreSources) -> Tensor:
    """(T, S + B): what each source contributes to what rows read, and to constants of their own."""
    sweep, n_rows, device = prompt.sweep, len(own_T), own_T.device
    last = torch.zeros(n_rows, dtype=torch.int64).scatter_reduce_(0, reads.row, reads.position, "amax")
    layer, d_model = int(reads.layer[0]), reads.vector.shape[1]
    nothing = torch.zeros(n_rows, d_model, dtype=reads.vector.dtype)
    targets = ReadOut(torch.full_like(last, layer), last, nothing, torch.zeros(n_rows), reads)
    rows = own_T.new_zeros(n_rows, len(sources))
    layout, in_order = sources.nodes.layout, prompt.linear.sources.feature_of_column.to(device)
    bytes_a_row = (int(last.max()) + 1) * d_model * rows.itemsize + rows[0].nbytes
    for block in sweep.blocks(targets, max(1, BYTES_IN_FLIGHT // bytes_a_row)):
        at = block.row.to(device)[:, None]
        rows[at, in_order[: block.n_columns]] = block.feature
        errors = rows.new_zeros(len(at), layout.n_layers, layout.n_pos)
        errors[:, :, : block.n_pos] = block.error
        rows[at[:, 0], layout.errors] = errors.flatten(1)
        rows[at[:, 0], layout.token_start : layout.token_start + block.n_pos] = block.token
    rows[:, sources.n_nodes + BIASES.index("own")] = own_T
    streams = prompt.constant_streams(layer)
    row, position, vector = reads.row.to(device), reads.position.to(device), reads.vector.to(own_T)
    for kind in CONSTANTS:
        read = (vector * streams[kind][position]).sum(1)
        rows[:, sources.n_nodes + BIASES.index(kind)].index_add_(0, row, read)
    return rows


def _require_sums(
    sides: tuple[Marginals, Marginals], products: float, score: float, label: str, graph: Graph, prompt: PromptScores
) -> float:
    """How far the marginals of a side are from the score, relative to the mass of what is rounded. Raises NumericalError beyond
    what is allowed (`allowed_gap`).
    """
    sums = [sum(side.parts.values()) for side in sides]
    gap = (torch.tensor(sums, dtype=torch.float64) - score).abs()
    mass = torch.tensor([sum(side.mass.values()) + abs(score) for side in sides], dtype=torch.float64)
    allowed = allowed_gap(mass, torch.tensor(products), graph.cfg.dtype, prompt.network.parts.config.dtype)
    residual = float((gap / mass.clamp_min(max(products, torch.finfo(torch.float64).tiny))).max())
    if not bool((gap <= allowed).all()):
        raise NumericalError(
            f"the score {label} is {score:.6g}, and its contributors add up to {sums[0]:.6g} on the query's side and "
            f"{sums[1]:.6g} on the key's: off by {float((gap / mass).max()):.1e} of their mass, "
            f"promised is {float((allowed / mass).min()):.0e}. Load the model in a dtype of higher precision"
        )
    return residual
