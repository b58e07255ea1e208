"""What graphs have in common: by hand on six graphs, and against a slow statement on random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.many.aggregate import Aggregate, aggregate_graphs
from circuit_tracer.many.aggregate.aggregate import VARIED
from circuit_tracer.many.aggregate.statistics import Columns
from tests.support.aggregate_cases import LABELS, A, B, C, six_graphs, slow_numbers
from tests.support.graph_cases import random_graph

ALL = {"node_threshold": 1.0, "edge_threshold": 1.0}


@pytest.fixture(scope="module")
def six() -> Aggregate:
    return aggregate_graphs(six_graphs().items(), LABELS, **ALL)


def row(columns: Columns, **which: Any) -> dict[str, Any]:
    """The one row with these values."""
    chosen = np.logical_and.reduce([columns[name] == value for name, value in which.items()])
    assert chosen.sum() == 1, f"{chosen.sum()} rows with {which}"
    return {name: values[chosen][0] for name, values in columns.items()}


def feature(six: Aggregate, item: tuple[int, int]) -> dict[str, Any]:
    return row(six.features, layer=item[0], index=item[1])


@pytest.mark.slow("takes 1.4 s")
def test_features_of_six_graphs_by_hand(six: Aggregate) -> None:
    """Graph a: half of the output comes from B, half from A; 3/4 of B from A: A has 1/2 + 3/4 * 1/2. In b: 1/4 + 3/4 * 3/4."""
    assert list(zip(six.features["layer"], six.features["index"], strict=True)) == [A, C, B]
    a = feature(six, A)
    assert (a["n_graphs"], a["frequency"]) == (3, 0.5)
    assert a["influence"] == pytest.approx((0.875 + 0.8125 + 1.0) / 6)
    assert a["influence_q50"] == pytest.approx(0.875)
    assert a["influence_q25"] == pytest.approx((0.8125 + 0.875) / 2)
    assert a["activation"] == pytest.approx(2.0)  # in c the larger of 2 and 1
    # a: -2 itself, 3 into B, of which B's 4 give 2. b: -2 + 3 * 6 / 4. c: 1 + 3
    assert a["attribution"] == pytest.approx((-0.5 + 2.5 + 4.0) / 6)
    b, c = feature(six, B), feature(six, C)
    assert b["influence"] == pytest.approx((0.5 + 0.75 + 0.5) / 6)
    assert b["attribution"] == pytest.approx((2 + 6 + 1) / 6)
    assert c["frequency"] == pytest.approx(2 / 6)
    assert c["attribution"] == pytest.approx((5 - 1) / 6)


def test_edges_of_six_graphs_by_hand(six: Aggregate) -> None:
    edge = row(six.edges, source="0/7", target="1/3")
    assert edge["n_graphs"] == 2
    assert edge["influence"] == pytest.approx((0.75 * 0.5 + 0.75 * 0.75) / 6)
    assert edge["attribution"] == pytest.approx((3 * 2 / 4 + 3 * 6 / 4) / 6)
    straight = row(six.edges, source="input", target="output")
    assert (straight["n_graphs"], straight["influence"]) == (1, pytest.approx(1 / 6))
    assert "activation" not in six.edges


def test_labels_of_six_graphs_by_hand(six: Aggregate) -> None:
    """A: -0.5, 2.5, 4 against 0, 0, 0. B: 2, 6, 0 against 0, 1, 0. C: 0, 0, 0 against 5, -1, 0."""
    for item, expected in (("0/7", 6 / 9), ("1/3", 7 / 9), ("0/9", 0.5)):
        found = row(six.labels, kind="feature", item=item, label="one")
        assert found["auc"] == pytest.approx(expected)
        assert found["auc_low"] <= expected <= found["auc_high"]
        assert row(six.labels, kind="feature", item=item, label="two")["auc"] == pytest.approx(1 - expected)
    assert row(six.labels, kind="feature", item="1/3", label="one")["frequency_with"] == pytest.approx(2 / 3)
    assert row(six.labels, kind="edge", item="0/7 -> 1/3", label="one")["auc"] == pytest.approx((3 + 3 + 1.5) / 9)


def test_the_common_circuit_of_six_graphs_by_hand(six: Aggregate) -> None:
    assert six.common["threshold"] == pytest.approx(np.arange(1, 7) / 6)
    assert six.common["n_features"].tolist() == [3, 3, 2, 0, 0, 0]
    # at 3 of 6, A and B hold all of a, b and c, nothing of d, half of e; f has no feature
    assert six.common["influence_features"] == pytest.approx([1, 1, 3.5 / 5, 0, 0, 0])
    assert six.common["n_edges"][0] == len(six.edges["source"])


def test_families_of_six_graphs_by_hand(six: Aggregate) -> None:
    """a and b share min / max = (0.8125 + 0.5) / (0.875 + 0.75)."""
    found = aggregate_graphs(six_graphs().items(), LABELS, **ALL, families=4)
    first = found.overview["families"][0]
    assert first["members"] == ["a", "b", "c"]
    assert first["labels"] == {"one": 3}
    assert first["features"][0]["item"] == "0/7"
    assert first["features"][0]["frequency"] == 1.0
    assert first["features"][0]["elsewhere"] == 0.0
    assert row(found.families, id="b")["distance"] == pytest.approx(1 - 1.3125 / 1.625)


@pytest.mark.parametrize("positions", ["pooled", "end"])
def test_all_numbers_against_a_slow_statement(positions: Any) -> None:
    thresholds = (0.75, 0.97)
    sizes = [(3, 4), (5, 12), (4, 20), (4, 20), (2, 6)]
    graphs = [
        random_graph(seed, n_pos=n_pos, n_active=n, n_selected=n, n_targets=2) for seed, (n_pos, n) in enumerate(sizes)
    ]
    found = aggregate_graphs(
        ((str(number), graph) for number, graph in enumerate(graphs)),
        positions=positions,
        node_threshold=thresholds[0],
        edge_threshold=thresholds[1],
        resamples=50,
    )
    settings = [thresholds, *VARIED]
    by_setting = [slow_numbers(graphs, setting, positions) for setting in settings]
    at = [f"@{role}" if role else "" for role in found.features["role"]]
    names = [
        f"{layer}/{index}{role}"
        for layer, index, role in zip(found.features["layer"], found.features["index"], at, strict=True)
    ]
    pairs = [
        f"{source} -> {target}" for source, target in zip(found.edges["source"], found.edges["target"], strict=True)
    ]
    for which, (table, items) in enumerate(((found.features, names), (found.edges, pairs))):
        slow = by_setting[0][which]
        assert set(items) == set(slow)
        assert len(items) == len(slow)
        for number, item in enumerate(items):
            values = np.array(list(slow[item].values()))
            assert table["n_graphs"][number] == len(values)
            assert table["influence"][number] == pytest.approx(values[:, 0].sum() / len(graphs))
            assert table["attribution"][number] == pytest.approx(values[:, 1].sum() / len(graphs))
            assert table["influence_q75"][number] == pytest.approx(np.quantile(values[:, 0], 0.75))
            kept = [sum(graph in other[which].get(item, {}) for graph in slow[item]) for other in by_setting]
            assert table["stability"][number] == pytest.approx(sum(kept) / len(values) / len(settings))
        _curve(found.common, ("features", "edges")[which], [numbers[which] for numbers in by_setting], len(graphs))


def _curve(common: Columns, name: str, by_setting: list[Any], n_graphs: int) -> None:
    for number, threshold in enumerate(common["threshold"]):
        sets = [
            {item for item, rows in slow.items() if len(rows) >= threshold * n_graphs - 1e-9} for slow in by_setting
        ]
        assert common[f"n_{name}"][number] == len(sets[0])
        assert common[f"steady_{name}"][number] == len(set.intersection(*sets))
        likeness = [len(sets[0] & other) / len(sets[0] | other) if sets[0] | other else 1 for other in sets[1:]]
        assert common[f"overlap_{name}"][number] == pytest.approx(np.mean(likeness))
        shares = []
        for graph in range(n_graphs):
            held = {item: rows[graph][0] for item, rows in by_setting[0].items() if graph in rows}
            if sum(held.values()) > 0:
                shares.append(sum(value for item, value in held.items() if item in sets[0]) / sum(held.values()))
        assert common[f"influence_{name}"][number] == pytest.approx(np.mean(shares))


def test_the_order_of_graphs_changes_nothing_but_the_draws() -> None:
    graphs = list(six_graphs().items())
    one, other = (aggregate_graphs(each, LABELS, **ALL) for each in (graphs, graphs[::-1]))
    drawn = {"influence_low", "influence_high"}
    for name in one.features.keys() - drawn:
        np.testing.assert_allclose(one.features[name], other.features[name]) if one.features[
            name
        ].dtype != object else None
    assert one.features["role"].tolist() == other.features["role"].tolist()
    np.testing.assert_allclose(one.labels["auc"], other.labels["auc"])


def test_roles_by_name() -> None:
    roles = {"a": {"first": 0, "last": [-1]}, "b": {"first": 0}}
    found = aggregate_graphs(list(six_graphs().items())[:2], positions=roles, **ALL)
    rows = list(zip(found.features["layer"], found.features["index"], found.features["role"], strict=True))
    assert rows == [(*A, "first"), (*B, "last"), (*B, "other")]
    assert "0/7@first" in found.edges["source"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"positions": {"a": {"x": 2}}}, "2 tokens"),
        ({"positions": {"a": {"x": 0, "y": -2}}}, "give it one role"),
        ({"positions": {"a": [1]}}, "mapping from names"),
        ({"positions": "start"}, "pooled, end"),
        ({"labels": {"a": "one", "b": "two"}}, "at least 2 graphs each"),
        ({"labels": dict.fromkeys("abcdef", "one")}, "at least 2 graphs each"),
        ({"families": 7}, "expected 1 to 6"),
        ({"resamples": 0}, "at least 1"),
        ({"node_threshold": 2.0}, "between 0 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], says: str) -> None:
    labels = given.pop("labels", None)
    with pytest.raises(InputError, match=says):
        aggregate_graphs(six_graphs().items(), labels, **given)


def test_no_graphs_one_id_twice_and_other_dictionaries() -> None:
    graphs = six_graphs()
    with pytest.raises(InputError, match="no graphs"):
        aggregate_graphs([])
    with pytest.raises(InputError, match="'a' comes twice"):
        aggregate_graphs([("a", graphs["a"]), ("a", graphs["b"])])
    graphs["b"].scan = "another"
    with pytest.raises(CompatibilityError, match="'another'"):
        aggregate_graphs(graphs.items())


def test_tables_come_back_as_they_were_and_the_same_to_the_byte(six: Aggregate, tmp_path: Path) -> None:
    names = six.write(tmp_path / "one")
    aggregate_graphs(six_graphs().items(), LABELS, **ALL).write(tmp_path / "two")
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    back = Aggregate.read(tmp_path / "one")
    assert back.overview == six.overview
    for table in ("features", "edges", "labels", "common", "families"):
        ours, theirs = getattr(six, table), getattr(back, table)
        assert ours.keys() == theirs.keys()
        for column in ours:
            np.testing.assert_array_equal(ours[column], theirs[column], err_msg=f"{table} {column}")
    with pytest.raises(InputError, match="circuit-tracer aggregate"):
        Aggregate.read(tmp_path / "three")


@pytest.mark.parametrize("name", ["features.parquet", "families.json"])
def test_damage_and_tables_of_another_aggregate_are_noticed(name: str, six: Aggregate, tmp_path: Path) -> None:
    six.write(tmp_path)
    path = tmp_path / "aggregate" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="circuit-tracer aggregate"):
        Aggregate.read(tmp_path)
