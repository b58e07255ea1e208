"""What the frozen attention patterns of a graph hide: which heads its edges run through, and why they look where they look
(README.md); and what heads do in general.
"""

from __future__ import annotations

from circuit_tracer.attention.edges import explain_edge
from circuit_tracer.attention.explanation import EdgeExplanation, HeadPath, Rest
from circuit_tracer.attention.head_ablation import Losses
from circuit_tracer.attention.head_table import HeadTable
from circuit_tracer.attention.heads import ablate_heads, diagnose_heads
from circuit_tracer.attention.headvis import write_headvis
from circuit_tracer.attention.many_edges import explain_edges
from circuit_tracer.attention.pairs import Pair, ScorePairs
from circuit_tracer.attention.pattern_scores import SCORES
from circuit_tracer.attention.score_explanation import Contributor, Marginals, ScoreExplanation
from circuit_tracer.attention.scores import explain_score
from circuit_tracer.attention.sequences import RandomTokens

__all__ = [
    "SCORES",
    "Contributor",
    "EdgeExplanation",
    "HeadPath",
    "HeadTable",
    "Losses",
    "Marginals",
    "Pair",
    "RandomTokens",
    "Rest",
    "ScoreExplanation",
    "ScorePairs",
    "ablate_heads",
    "diagnose_heads",
    "explain_edge",
    "explain_edges",
    "explain_score",
    "write_headvis",
]
