"""Rules of sparsity live in their files and the table (tests/extending adds one)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import circuit_tracer
from circuit_tracer.errors import InputError
from circuit_tracer.training.config.files import validate
from circuit_tracer.training.config.keys import keys
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.sparsity import RULES, UNREAD, rule_of
from circuit_tracer.training.sparsity.base import Rule
from circuit_tracer.training.sparsity.budget import BudgetRule
from circuit_tracer.training.sparsity.penalty import PenaltyRule
from tests.support.config_cases import SMALL

PACKAGE, ROOT = Path(circuit_tracer.__file__).parent, Path(__file__).parents[2]


@pytest.mark.parametrize("name", RULES)
def test_a_row_is_what_its_class_is(name: str) -> None:
    rule = rule_of(SparsitySection(activation=name))
    assert isinstance(rule, Rule)
    assert rule.has_budget == isinstance(rule, BudgetRule) != rule.steered
    assert rule.has_penalty == isinstance(rule, PenaltyRule)
    assert rule.has_budget != rule.has_penalty == rule.steered  # else nothing keeps features rare
    assert rule.learns_thresholds == ("bandwidth" in RULES[name].reads)
    assert set(RULES[name].reads) <= {key for group in UNREAD for key in group} <= {*SparsitySection.model_fields}


def test_the_configuration_lists_the_table() -> None:
    activation = keys()["sparsity.activation"]
    assert activation.choices == tuple(RULES)
    assert all(row.keeps in activation.description for row in RULES.values())
    with pytest.raises(InputError, match=rf'activation is "gelu"; expected one of {", ".join(RULES)}\. Which'):
        validate({**SMALL, "sparsity": {"activation": "gelu"}})
    assert keys()["sparsity.penalty"].description.endswith("(jumprelu, relu, gated).")


def test_nothing_else_asks_for_a_rule_by_its_name() -> None:
    question = re.compile(r"\.activation\s*(==|!=|in\b|not in\b)")
    asking = [
        path
        for folder in ("training", "cli")
        for path in (PACKAGE / folder).rglob("*.py")
        if question.search(path.read_text(encoding="utf-8"))
    ]
    assert asking == []
