"""What the frozen attention patterns of a graph hide: why heads look where they look."""

from circuit_tracer.attention.pairs import Pair, ScorePairs
from circuit_tracer.attention.score_explanation import Contributor, Marginals, ScoreExplanation
from circuit_tracer.attention.scores import explain_score

__all__ = ["Contributor", "Marginals", "Pair", "ScoreExplanation", "ScorePairs", "explain_score"]
