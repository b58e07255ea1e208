"""What the frozen patterns hide: heads diagnosed."""

from __future__ import annotations

from circuit_tracer.attention.head_ablation import Losses
from circuit_tracer.attention.head_table import HeadTable
from circuit_tracer.attention.heads import ablate_heads, diagnose_heads
from circuit_tracer.attention.headvis import write_headvis
from circuit_tracer.attention.pattern_scores import SCORES
from circuit_tracer.attention.sequences import RandomTokens

__all__ = ["SCORES", "HeadTable", "Losses", "RandomTokens", "ablate_heads", "diagnose_heads", "write_headvis"]
