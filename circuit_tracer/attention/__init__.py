"""What the frozen patterns hide: why heads look where they look; heads diagnosed."""

from __future__ import annotations

from circuit_tracer.attention.head_ablation import Losses
from circuit_tracer.attention.head_table import HeadTable
from circuit_tracer.attention.heads import ablate_heads, diagnose_heads
from circuit_tracer.attention.headvis import write_headvis
from circuit_tracer.attention.pairs import Pair, ScorePairs
from circuit_tracer.attention.pattern_scores import SCORES
from circuit_tracer.attention.score_explanation import Contributor, Marginals, ScoreExplanation
from circuit_tracer.attention.scores import explain_score
from circuit_tracer.attention.sequences import RandomTokens

__all__ = [
    "SCORES",
    "Contributor",
    "HeadTable",
    "Losses",
    "Marginals",
    "Pair",
    "RandomTokens",
    "ScoreExplanation",
    "ScorePairs",
    "ablate_heads",
    "diagnose_heads",
    "explain_score",
    "write_headvis",
]
