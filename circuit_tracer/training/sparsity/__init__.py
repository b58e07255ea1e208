"""Rules of sparsity: which features of a token are active (training/README.md §4). One file a rule, one row of ``RULES``.

Nothing here imports torch: the configuration and its help need only names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuit_tracer.training.config.schema import SparsitySection
    from circuit_tracer.training.sparsity.base import Rule


# Keys of the section that only some rules read, in groups, and why a rule does not.
BUDGET_KEYS = ("active", "active_at_start", "anneal")
PENALTY_KEYS = ("penalty", "penalty_warmup")
PENALTY_SHAPE_KEYS = ("penalty_scale",)
RANKING_KEYS = ("rank_by",)
THRESHOLD_KEYS = ("bandwidth", "band_probability")
EXPERT_KEYS = ("experts", "balance_weight")
UNREAD = {
    BUDGET_KEYS: "which keeps no number of features",
    PENALTY_KEYS: "which keeps exactly sparsity.active features",
    PENALTY_SHAPE_KEYS: "which has no penalty, or one that is linear",
    RANKING_KEYS: "which ranks by pre-activations alone, or not at all",
    THRESHOLD_KEYS: "which learns no threshold",
    EXPERT_KEYS: "which has no router",
}


@dataclass(frozen=True)
class Listed:
    """A row of the table."""

    home: str  # module:class, imported when a configuration asks for the rule
    keeps: str  # what counts, in a few words, for the help of `sparsity.activation`
    reads: tuple[str, ...]  # its keys of the groups above


# by the name that `sparsity.activation` gives
RULES: dict[str, Listed] = {
    "batch_topk": Listed(
        "circuit_tracer.training.sparsity.batch_topk:BatchTopK", "the best of a batch", BUDGET_KEYS + RANKING_KEYS
    ),
    "topk": Listed("circuit_tracer.training.sparsity.topk:TopK", "the best of a token", BUDGET_KEYS),
    "jumprelu": Listed(
        "circuit_tracer.training.sparsity.jumprelu:JumpReLU",
        "a threshold",
        BUDGET_KEYS + PENALTY_KEYS + PENALTY_SHAPE_KEYS + THRESHOLD_KEYS,
    ),
    "relu": Listed(
        "circuit_tracer.training.sparsity.relu:ReLU", "zero", BUDGET_KEYS + PENALTY_KEYS + PENALTY_SHAPE_KEYS
    ),
    "gated": Listed("circuit_tracer.training.sparsity.gated:Gated", "a gate", BUDGET_KEYS + PENALTY_KEYS),
    "switch": Listed(
        "circuit_tracer.training.sparsity.switch:Switch", "the best of one expert", BUDGET_KEYS + EXPERT_KEYS
    ),
}


def rule_of(settings: SparsitySection) -> Rule:
    """The rule that ``settings.activation`` names, with these settings."""
    return _class(RULES[settings.activation].home)(settings)


def readers(key: str) -> str:
    """The rules that read a key of the groups above."""
    return ", ".join(name for name, row in RULES.items() if key in row.reads)


def unread(activation: str) -> dict[str, str]:
    """Keys of the groups above that a rule does not read, with the reason."""
    reads = RULES[activation].reads
    return {key: reason for keys, reason in UNREAD.items() for key in keys if key not in reads}


@cache
def _class(home: str) -> type[Rule]:
    module, _, name = home.partition(":")
    found: type[Rule] = getattr(import_module(module), name)
    return found
