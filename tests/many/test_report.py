"""Reports: halves, intervals, what separates labels and what steering does, on a run of the embedded model."""

from __future__ import annotations

import json
from functools import partial
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.errors import InputError
from circuit_tracer.interventions import apply_edits, scale
from circuit_tracer.interventions.features.edits import FeatureAt
from circuit_tracer.many import Row, Run
from circuit_tracer.many.report import Options, Report, as_html, make_report
from circuit_tracer.many.report.behaviour import behaviours, towards_others
from circuit_tracer.many.report.halves import halves
from circuit_tracer.many.report.rates import Mean, Rate
from circuit_tracer.many.report.steering import LIVE, Behaviours, Effect, chance, over_prompts, steer
from circuit_tracer.many.runs.local import run_locally
from circuit_tracer.many.runs.run import run

QUESTIONS = 24  # of either label
OPTIONS = Options("label", "answer", "city", steered=3, validated=1)


# ---- halves and intervals


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=40), st.integers(0, 3))
def test_halves_share_out_labels_and_keep_groups_together(rows: list[tuple[str, int]], seed: int) -> None:
    ids = [str(number) for number in range(len(rows))]
    labels = {id: label for id, (label, _) in zip(ids, rows, strict=True)}
    groups = {id: f"{label}{group}" for id, (label, group) in zip(ids, rows, strict=True)}  # a group has one label
    found, tested = halves([*ids, "without a label"], labels, groups, seed)
    assert sorted(found + tested) == sorted(ids)
    assert {groups[id] for id in found}.isdisjoint(groups[id] for id in tested)
    for label in "ab":
        sizes = [sum(groups[id] == each for id in ids) for each in {groups[id] for id in ids if labels[id] == label}]
        difference = abs(sum(labels[id] == label for id in found) - sum(labels[id] == label for id in tested))
        assert difference <= max(sizes, default=0)


def test_halves_are_those_of_the_seed() -> None:
    ids = [str(number) for number in range(20)]
    labels = dict.fromkeys(ids, "a")
    assert halves(ids, labels, {}, 1) == halves(ids, labels, {}, 1) != halves(ids, labels, {}, 2)


def test_a_rate_has_wilsons_interval() -> None:
    rate = Rate.of([True] * 8 + [False] * 2)
    assert (rate.count, rate.total, rate.share) == (8, 10, 0.8)
    # by its definition: the shares p for which 0.8 is 1.96 standard errors away
    for p in (rate.low, rate.high):
        assert p is not None
        assert abs(0.8 - p) == pytest.approx(1.959964 * (p * (1 - p) / 10) ** 0.5, rel=1e-6)
    assert Rate.of([]) == Rate(0, 0, None, None, None)


def test_a_mean_has_the_percentiles_of_its_resamples() -> None:
    values = [0.0, 1.0, 4.0, 9.0, 2.0, 2.0]
    found = Mean.of(values, seed=3)
    slow = [np.mean(np.random.default_rng(seed).choice(values, 6)) for seed in range(4000)]
    assert found.mean == pytest.approx(3.0)
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=0.35)
    assert Mean.of([], 0) == Mean(0, None, None, None)


# ---- a run of the embedded model: questions for capitals and for abbreviations, the first ones with wrong answers expected


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=torch.float32)


def rows() -> list[Row]:
    made = []
    for place in world.entities()[:QUESTIONS]:
        for relation in ("capital", "abbreviation"):
            one = world.two_hop(place, place.open_cities[0], relation)
            answer = "nowhere" if relation == "capital" else one.answer
            three = "alone" if not made else relation if relation == "capital" or len(made) % 4 == 1 else "other"
            extra = {"answer": answer, "city": one.city, "three": three}
            made.append(Row(f"{place.name} {relation}", one.prompt, label=relation, extra=extra))
    return [*made, Row("wrong", "", label="capital", problem="a line that is no row")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    asked = {"opening": {"transcoders": TRANSCODER, "model": MODEL}}
    return run(rows(), tmp_path_factory.mktemp("run") / "run", asked, engine=partial(run_locally, workers=1))


@pytest.fixture(scope="module")
def report(made: Run, model: ReplacementModel) -> Report:
    return make_report(made, model, OPTIONS)


@pytest.mark.slow("takes 3.5 s")
def test_behaviour_is_counted_by_label(report: Report) -> None:
    both, abbreviation, capital = report.behaviour
    assert (both.rows, abbreviation.rows, capital.rows) == (2 * QUESTIONS + 1, QUESTIONS, QUESTIONS + 1)
    assert capital.failed == {"FileFormatError": 1}
    assert abbreviation.right is not None
    assert capital.right is not None
    assert (abbreviation.right.count, capital.right.count) == (QUESTIONS, 0)
    assert sum(rate.count for _, rate in both.answers) <= 2 * QUESTIONS


@pytest.mark.slow("takes 1.6 s")
def test_labels_that_behave_differently_have_a_direction(made: Run) -> None:
    labels, expected = made.values("label"), made.values("answer")
    assert towards_others(made.table, labels, expected, "capital") == 1
    assert towards_others(made.table, labels, expected, "abbreviation") == -1
    assert towards_others(made.table, labels, {}, "capital") is None
    alike = {id: row["top_token"] for row in made.table if row["status"] == "done" for id in [row["id"]]}
    assert towards_others(made.table, labels, alike, "capital") == 0


@pytest.mark.slow("takes 1.3 s")
def test_what_separates_holds_on_rows_that_did_not_choose_it(report: Report, made: Run) -> None:
    assert {each.holds for each in report.separators} >= {True}
    asked = {each.label for each in report.separators if each.auc_found == each.auc == 1}
    assert asked == {"capital", "abbreviation"}  # features of the relation's own token
    assert not set(report.halves.found) & set(report.halves.tested)
    cities = made.values("city")
    assert {cities[id] for id in report.halves.found}.isdisjoint(cities[id] for id in report.halves.tested)


@pytest.mark.slow("takes 1.9 s")
def test_findings_say_what_they_are(report: Report) -> None:
    assert report.findings
    for each in report.findings:
        held = any(one.holds for one in each.group.members)
        steers = any(one.steers for one in each.steered)
        assert each.outcome == ("did not hold" if not held else "cause" if steers else "marker")
        assert each.group.counted[0].called in each.group.name or each.group.members[0] is not each.group.counted[0]
    said = report.conclusions
    assert len(said) == sum(each.is_finding for each in report.findings) + (report.trust.sound.share == 0)
    assert ("Read this with care: something speaks against 1 of 1" in said[-1]) is (report.trust.sound.share == 0)


def test_steering_is_an_intervention_on_all_nodes_of_a_group(made: Run, model: ReplacementModel) -> None:
    id = made.ids[0]
    graph = made.graph(id)
    layer, _, index = graph.active_features[graph.selected_features[0]].tolist()
    nodes = [FeatureAt(*row) for row in graph.active_features.tolist() if (row[0], row[2]) == (layer, index)]
    members = {"one": frozenset([(layer, index)]), "none": frozenset([(99, 0)])}
    behaviour = Behaviours({id: "nowhere"}, {"one": 1, "none": 1})
    found = steer([(id, graph)], model, members, {"one": [id], "none": [id]}, behaviour, seed=0)
    for steered in found["one"]:
        outcome = apply_edits(model, graph, scale(nodes, steered.strength), LIVE, watch="none")
        before, after = (torch.log_softmax(each[-1].double(), -1) for each in (outcome.clean_logits, outcome.logits))
        top = int(before.argmax())
        assert steered.log_probability.mean == pytest.approx(float(after[top] - before[top]), abs=1e-5)
        assert steered.changed.count == int(int(after.argmax()) != top)
        assert (steered.rows, steered.size, steered.random_changed.total) == (1, len(nodes), 5)
        assert steered.right == steered.before == Rate.of([False])
        assert steered.p == 1  # of one prompt nothing follows
    assert [each.rows for each in found["none"]] == [0, 0]


def effects(*does: bool) -> tuple[Effect, list[Effect]]:
    """A prompt: what the group does to the answer, and what its random groups do."""
    group, *others = (Effect(each, None, None, 0.0) for each in does)
    return group, others


def test_the_chance_of_a_group_is_that_of_all_ways_to_draw_it() -> None:
    pairs = [effects(True, False, False), effects(True, True, False), effects(False, True), effects(True, True, True)]
    drawn = [sum(each.does(None) for each in one) for one in product(*([one, *others] for one, others in pairs))]
    assert chance(pairs, None) == pytest.approx(np.mean(np.array(drawn) >= 3))
    assert chance([], None) == chance(pairs, 0) == 1


def test_few_prompts_make_no_cause_however_alike() -> None:
    """A bootstrap of one or two prompts that all say the same is a point, which proves nothing."""
    alike = effects(True, *[False] * 5)
    one, few = ([alike] * count for count in (1, 5))
    assert not over_prompts(0.0, [1], one, None, 2, 0).steers
    assert over_prompts(0.0, [1], one, None, 2, 0).difference.low == 1
    assert over_prompts(0.0, [1], few, None, 2, 0).p == pytest.approx(2 / 6**5)
    assert over_prompts(0.0, [1], few, None, 2, 0).steers


def test_a_group_is_judged_by_the_answers_of_other_labels() -> None:
    right, wrong, unknown = (Effect(True, False, each, 0.0) for each in (True, False, None))
    assert [each.does(1) for each in (right, wrong, unknown)] == [True, False, False]
    assert [each.does(-1) for each in (right, wrong, unknown)] == [False, True, False]
    assert [each.does(0) for each in (right, wrong, unknown)] == [False] * 3
    assert [each.does(None) for each in (right, wrong, unknown)] == [True] * 3


def test_three_labels_one_of_a_single_row_without_right_answers(made: Run, model: ReplacementModel) -> None:
    found = make_report(made, model, Options("three", steered=1, validated=0), names={(0, 9): "asks for <a city>"})
    assert [each.label for each in found.behaviour] == ["", "abbreviation", "alone", "capital", "other"]
    assert all(each.right is None for each in found.behaviour)
    assert found.unexplained.not_compared == {"alone": 1}
    assert found.unexplained.failed == 1
    assert {each.label for each in found.separators} <= {"abbreviation", "capital", "other"}
    assert all(each.outcome in ("separates only", "did not hold", "cause") for each in found.findings)
    assert not any(each.is_finding for each in found.findings)  # one prompt each
    assert "No finding" in found.conclusions[0]
    page = as_html(found, "x")
    assert "Rows labelled &#x27;alone&#x27;: 1, too few to compare" in page
    assert "changed: " in page
    assert "asks for &lt;a city&gt;" in page


class Text(HTMLParser):
    """All text of a page, and whether its elements close."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.open = "", list[str]()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag in ("meta", "!doctype") else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_a_page_and_json_values(report: Report) -> None:
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["conclusions"] == report.conclusions
    assert [each["outcome"] for each in plain["findings"]] == [each.outcome for each in report.findings]
    assert plain["repeat"]["options"]["label"] == "label"
    page = Text()
    page.feed(as_html(report, "<b>&"))
    assert not page.open
    assert "<b>&" in page.text
    assert all(sentence in page.text for sentence in report.conclusions)


def test_a_report_is_the_same_again(report: Report, made: Run, model: ReplacementModel) -> None:
    assert make_report(made, model, OPTIONS).to_json() == report.to_json()


def test_without_labels_there_is_nothing_to_compare(made: Run, model: ReplacementModel) -> None:
    found = make_report(made, model, Options(label=None, validated=0))
    assert (found.separators, found.findings) == ([], [])
    assert found.conclusions == ["No row has a label, so nothing was compared."]
    assert "No graph was tested" in as_html(found, "x")


def test_bad_questions_are_errors(made: Run, model: ReplacementModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'kind'"):
        make_report(made, model, Options(label="kind"))
    with pytest.raises(InputError, match="expected two labels"):
        make_report(made, model, Options(label="city", validated=0), lambda *_: pytest.fail("graphs were read"))
    asked = {"opening": {"transcoders": TRANSCODER, "model": MODEL}}
    empty = run([Row("a", "", problem="no row")], tmp_path / "run", asked, engine=partial(run_locally, workers=1))
    with pytest.raises(InputError, match="no graph yet"):
        make_report(empty, model)


def test_behaviours_of_nothing_are_empty() -> None:
    (everything,) = behaviours([], {}, {}, 0)
    assert (everything.rows, everything.right, everything.answers) == (0, None, [])
