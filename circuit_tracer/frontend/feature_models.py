"""circuit-tracer's `circuit_tracer.frontend.feature_models`: a feature's page as an object."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["Example", "ExamplesQuantile", "Model"]


class Example(BaseModel):
    """A text in which a feature is active: tokens and its activation at each."""

    tokens_acts_list: list[float]
    train_token_ind: int
    is_repeated_datapoint: bool
    tokens: list[str]


class ExamplesQuantile(BaseModel):
    """Texts of like activation."""

    quantile_name: str
    examples: list[Example]


class Model(BaseModel):
    """What is known of a feature."""

    transcoder_id: str
    index: int
    examples_quantiles: list[ExamplesQuantile]
    top_logits: list[str]
    bottom_logits: list[str]
    act_min: float
    act_max: float
    quantile_values: list[float]
    histogram: list[float]
    activation_frequency: float
