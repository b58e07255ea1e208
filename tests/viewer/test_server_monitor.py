"""Texts watched by a server: what it answers, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.probes.monitor import Monitor, feature_watch
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.server import Server, monitoring, serve
from tests.support.asking import ask

WATCHED = ("2/12>1.5", "1/3")
TEXTS = ["the capital of Texas is Austin", "the opposite of big is small", " "]


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory, demo_model: ReplacementModel) -> Iterator[Server]:
    probes = [feature_watch(text) for text in WATCHED]
    with serve(
        tmp_path_factory.mktemp("graphs"), port=0, model=demo_model, probes=probes, labels={(2, 12): "a label"}
    ) as server:
        yield server


def test_verdicts_are_those_of_the_monitor_in_order(watching: Server, demo_model: ReplacementModel) -> None:
    listed = ask(watching, "/api/monitor").json["probes"]
    assert [(probe["name"], probe["threshold"], probe["pool"]) for probe in listed] == [
        ("feature 2/12", 1.5, "token"),
        ("feature 1/3", 0.0, "token"),
    ]
    found = ask(watching, "/api/monitor", {"texts": TEXTS}).json["verdicts"]
    assert [verdict["id"] for verdict in found] == ["1", "2", "3"]
    assert "not empty" in found[2]["problem"]
    monitor = Monitor(demo_model, [feature_watch(text) for text in WATCHED])
    for text, verdict in zip(TEXTS, found[:2], strict=False):
        assert verdict["scores"] == pytest.approx(dict(monitor.look(text).scores), rel=1e-5)
    flags = [flag for verdict in found[:2] for flag in verdict["flags"]]
    assert {feature["label"] for flag in flags for feature in flag["features"] if feature["layer"] == 2} == {"a label"}


def test_who_may_ask_and_how_much(watching: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(watching, "/api/monitor", {"texts": TEXTS}, token=False).status == 403
    unusable: list[dict[str, object]] = [
        {},
        {"texts": []},
        {"texts": "the"},
        {"texts": [1]},
        {"texts": ["the"] * 257},
        {"texts": ["a"], "probe": "/etc"},
    ]
    for body in unusable:
        assert ask(watching, "/api/monitor", body).status == 400
    too_much = ask(watching, "/api/monitor", {"texts": ["a" * 60_000] * 2})
    assert (too_much.status, "120,000" in too_much.error) == (413, True)
    with watching.site.jobs.alone("something else"):
        assert ask(watching, "/api/monitor", {"texts": TEXTS}).status == 503
    monkeypatch.setattr(monitoring, "MOST_SECONDS", -1.0)
    late = ask(watching, "/api/monitor", {"texts": TEXTS[:2]}).json["verdicts"]
    assert all("send fewer texts" in verdict["problem"] for verdict in late)


def test_a_server_without_probes_says_so(tmp_path: Path, demo_model: ReplacementModel) -> None:
    with serve(tmp_path, port=0, model=demo_model) as server:
        for answer in (ask(server, "/api/monitor"), ask(server, "/api/monitor", {"texts": TEXTS})):
            assert (answer.status, "--probe" in answer.error) == (409, True)
    with pytest.raises(InputError, match="give the model too"):
        serve(tmp_path, port=0, probes=[feature_watch("1/1")])
