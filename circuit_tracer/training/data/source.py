"""From a configuration to the rows of its data: documents, packer, model pass and cache put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.models.loading import resolve_dtype
from circuit_tracer.models.model_pass import ModelPass
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.packing import open_packer
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.block import RowLayout
from circuit_tracer.training.data.cache import CachedRows
from circuit_tracer.training.data.given.source import UnseenModel, given_rows
from circuit_tracer.training.data.points import points_of, width_of
from circuit_tracer.training.data.rows import ModelRows, Recipe, Rows
from circuit_tracer.training.data.settings import settings_of
from circuit_tracer.training.feature_ranks import FeatureRanks


@dataclass(frozen=True)
class Source:
    """The rows of one epoch, what they look like, what they follow from, and where the model is."""

    rows: Rows
    layout: RowLayout
    settings: dict[str, Any]
    device: torch.device
    tokens: slice  # of each batch, those that this rank sees
    ahead: bool = False  # whether a thread may make batches ahead: not where that takes other ranks, or a CPU's cores


def open_source(
    config: TrainingConfig, parts: ModelParts, tokenizer: Any, ranks: FeatureRanks, evaluation: bool = False
) -> Source:
    """Rows of the training documents, through the cache if there is one; or of those held out, never cached."""
    data = config.data
    if isinstance(parts, UnseenModel):
        given = given_rows(config, parts.rows, evaluation)
        return _source(*given, config, parts, ranks, evaluation, ahead=True)
    points = points_of(config.dictionary, parts)
    packer = open_packer(data.source, tokenizer, data.context_length, data.held_out, evaluation)
    matching = config.sparsity.jacobian_weight > 0
    names = ("x",) if points.same else ("x", "y", "direction", "derivative") if matching else ("x", "y")
    layout = RowLayout(names, len(points.layers), width_of(config.dictionary, parts), resolve_dtype(data.buffer_dtype))
    seed = config.run.seed if matching else None
    recipe = Recipe(data.sequences_per_pass, data.max_norm_ratio, layout.dtype, seed, ahead=not evaluation)
    model_rows = ModelRows(packer, ModelPass(parts, points, data.context_length), recipe, ranks.plain)
    settings = settings_of(config, parts, tokenizer, packer.documents, points)
    ahead = parts.device.type != "cpu"  # the model's pass would take the step's cores
    return _source(model_rows, layout, settings, config, parts, ranks, evaluation, ahead)


def _source(
    rows: Rows,
    layout: RowLayout,
    settings: dict[str, Any],
    config: TrainingConfig,
    parts: ModelParts,
    ranks: FeatureRanks,
    evaluation: bool,
    ahead: bool,
) -> Source:
    cache = config.data.cache
    if cache is not None and not evaluation:
        rows = CachedRows(cache, rows, layout, settings, ranks.plain)
    tokens = ranks.tokens(config.run.batch)
    return Source(rows, layout, settings, parts.device, tokens, ahead and ranks.plain.world == 1)
