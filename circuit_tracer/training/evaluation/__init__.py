"""Measuring dictionaries on held-out text: reconstruction, replacement, graphs, beside baselines. Definitions: README.md."""

from __future__ import annotations

from circuit_tracer.training.evaluation.activations import GivenActivations, ModelActivations
from circuit_tracer.training.evaluation.card import model_card, write_report
from circuit_tracer.training.evaluation.evaluate import evaluate
from circuit_tracer.training.evaluation.results import Evaluation
from circuit_tracer.training.evaluation.settings import EvaluationSettings

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "GivenActivations",
    "ModelActivations",
    "evaluate",
    "model_card",
    "write_report",
]
