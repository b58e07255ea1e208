"""Pictures of aggregates: the same file each time, in every format, whatever names hold; what is not there is not drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate import Aggregate, aggregate_graphs
from circuit_tracer.many.aggregate.pictures import draw, draw_families, draw_labels
from tests.support.aggregate_cases import LABELS, A, six_graphs


@pytest.fixture(scope="module")
def six() -> Aggregate:
    labels = {id: f"{label} $x_1$ & <b>" for id, label in LABELS.items()}
    return aggregate_graphs(six_graphs().items(), labels, names={A: "costs $3 or $4"}, resamples=20)


@pytest.mark.slow("takes 1.3 s")
def test_the_same_file_each_time(six: Aggregate, tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert draw(six, str(tmp_path / place), ".svg") == [
            f"aggregate/{name}.svg" for name in ("common", "labels", "families")
        ]
    for name in ("common", "labels", "families"):
        first, second = ((tmp_path / place / "aggregate" / f"{name}.svg").read_bytes() for place in ("one", "two"))
        assert first == second
    assert b"costs $3 or $4" in (tmp_path / "one/aggregate/labels.svg").read_bytes()


def test_without_labels_there_is_no_picture_of_them(tmp_path: Path) -> None:
    found = aggregate_graphs(six_graphs().items(), resamples=20)
    assert draw_labels(found) is None
    with pytest.raises(InputError, match="no format of pictures"):
        draw(found, str(tmp_path), ".docx")


def test_graphs_without_features_have_no_families_to_draw() -> None:
    graphs = six_graphs()
    found = aggregate_graphs([("f", graphs["f"])], resamples=20)
    assert len(found.features["item"]) == 0
    assert found.common["n_features"].tolist() == [0]
    assert draw_families(found) is None
