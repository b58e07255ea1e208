"""What to measure, and on how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.training.config.schema import EvaluationSection

USUAL_TOKENS, USUAL_PROMPTS = 16384, 20  # of an evaluation that is no part of a run; a short run takes fewer


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of one evaluation; equal settings, weights and tokens give equal results.

    Sequences are never cut: a number of tokens means whole sequences up to that number, at least one.
    """

    tokens: int = USUAL_TOKENS  # read for reconstruction, densities and dead features
    replacement_tokens: int = 4096  # read with all MLPs replaced; 0: not measured
    prompts: tuple[str, ...] = ()  # whose graphs are scored
    held_out_prompts: int = 0  # graphs of so many prompts cut from the held-out text (`snippets.py`) are scored too
    faithfulness: bool = True  # edges and groups of every graph scored are tested in the model
    max_feature_nodes: int | None = None  # features of a graph that get a row of their own; None: all of them
    random_baseline: bool = True
    random_graphs: int | None = None  # prompts, the first ones, whose graphs are scored for it too; None: all
    seed: int = 0  # of the random dictionary, and of what is sampled of a graph
    max_norm_ratio: float | None = 10.0  # tokens whose input norm is above this many medians of a layer are left out
    calibration_tokens: int = 1024  # for these medians and for fitting the random dictionary
    batch_tokens: int = 2048  # in flight; changes no result

    @classmethod
    def of(cls, section: EvaluationSection, **others: Any) -> EvaluationSettings:
        """The settings of a configuration, which names what to measure, and others by name, the usual ones
        where it leaves them open."""
        return cls(
            tokens=USUAL_TOKENS if section.tokens is None else section.tokens,
            replacement_tokens=section.replacement_tokens,
            prompts=tuple(section.prompts),
            held_out_prompts=USUAL_PROMPTS if section.held_out_prompts is None else section.held_out_prompts,
            faithfulness=section.faithfulness,
            random_baseline=section.random_baseline,
            random_graphs=section.random_graphs,
            **others,
        )

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 1),
            ("replacement_tokens", 0),
            ("held_out_prompts", 0),
            ("random_graphs", 0),
            ("max_feature_nodes", 1),
            ("calibration_tokens", 1),
            ("batch_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"evaluation: {name} is {value}; at least {least} is expected")
        if self.max_norm_ratio is not None and not self.max_norm_ratio > 1:
            raise InputError(
                f"evaluation: max_norm_ratio is {self.max_norm_ratio}; expected a number above 1, or None to leave out no token"
            )
