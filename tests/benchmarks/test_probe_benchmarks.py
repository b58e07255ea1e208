"""The data of the probes' examples, and learned and unlearned scores side by side."""

from __future__ import annotations

import pytest
import torch

from benchmarks.probes.personal import personal_texts
from benchmarks.probes.personal_data import by_expressions, task_of
from benchmarks.probes.personal_templates import LOCALES, TEMPLATES
from benchmarks.probes.questions import answered, others, sums, world_questions
from benchmarks.probes.truth import statements
from benchmarks.tables import probes as tables
from circuit_tracer.demo import MODEL
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.probes.reading import Subject


def test_personal_texts_are_those_of_the_seed_with_spans_where_they_are_personal() -> None:
    made = personal_texts(3, 2)
    assert [one.text for one in made] == [one.text for one in personal_texts(3, 2)]
    assert [one.text for one in made] != [one.text for one in personal_texts(4, 2)]
    assert {(one.language, one.family) for one in made} == {(each, family) for each in LOCALES for family in TEMPLATES}
    assert sum(one.label for one in made) == len(made) // 2
    for one in made:
        last = 0
        for start, end, kind in one.spans:
            assert last <= start < end <= len(one.text)
            last = end
            assert ("@example." in one.text[start:end]) == (kind == "email")
        assert one.label or "@example." not in one.text
        assert not {"{", "}"} & set(one.text)
    assert all(by_expressions(one.text) > 0 for one in made if any(kind == "email" for *_, kind in one.spans))


def test_families_that_set_thresholds_are_learned_from_nowhere() -> None:
    task, texts = task_of(0, 2, 2)
    assert len(texts) == len(task.examples) + len(task.negatives)
    assert not any(each.label for each in task.negatives)
    assert {*task.groups["family"]} == set(TEMPLATES) - {"letter", "notice"}
    assert all(len(groups) == len(task.examples) for groups in task.groups.values())


def test_wrong_answers_are_of_the_same_relation_and_wrong() -> None:
    asked = [*world_questions()[:300], *sums(0, 10)]
    for one, wrong in zip(asked, others(asked, 0), strict=True):
        assert wrong != one.answer
        assert wrong in {each.answer for each in asked if each.relation == one.relation}
    for one in sums(0, 10):
        a, sign, b = one.prompt.splitlines()[-1].split()[:3]
        assert int(one.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


@pytest.mark.slow("takes 1.3 s")
def test_statements_of_the_world_and_the_models_own_probability_tell_lies() -> None:
    model, tokenizer = load_model(MODEL)
    questions = [one for one in world_questions() if one.relation != "place, 1 hops"][::5]
    found = answered(model, tokenizer, questions)
    ids = torch.tensor([tokenizer(questions[0].prompt).input_ids])
    odds = model(input_ids=ids, use_cache=False).logits[0, -1].detach().log_softmax(-1)
    assert found[0].right
    assert abs(found[0].log_probability - float(odds.max())) < 1e-4
    assert abs(found[0].entropy + float((odds.exp() * odds).sum())) < 1e-3
    task, held = statements(model, tokenizer, questions, ["abbreviation, 2 hops"], "", 0)
    subject = Subject.of(model, tokenizer)
    table = task.table(subject, ("hook_resid_post", 0), [], "last")
    rows = task.measured(table, {"raw": ("stream", "mean")}, 3, 0)
    assert set(rows) == {"relation", "subject"}
    own = rows["subject"][-1]
    assert own["texts"]["auc"][0] > 0.99
    assert all(row["texts"]["at"]["0.001"] is None for row in rows["relation"])
    record = {"models": {"embedded": {"held": held, "layers": [{"layer": 0, **rows}]}}}
    assert any(line.startswith("| own probability of the answer | 1.000") for line in tables.statements(record))
