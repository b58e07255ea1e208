"""Tools for assistants, asked by the protocol's own client in this process: a session, and arguments that mean harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp import Client
from mcp_types import CallToolResult

from circuit_tracer.assistants.limits import MOST_BYTES, MOST_PROMPT, Limits
from circuit_tracer.assistants.server import make_server
from circuit_tracer.assistants.tools import TOOLS
from circuit_tracer.assistants.workplace import Model, Workplace, open_folder
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.errors import InputError
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.replacement_model import ReplacementModel

Ask = Callable[..., CallToolResult]


def asking(place: Workplace) -> Ask:
    """Calls tools of a workplace, a connection a call."""
    server = make_server(place)

    def ask(name: str, /, **arguments: Any) -> CallToolResult:
        async def call() -> CallToolResult:
            async with Client(server) as client:
                return await client.call_tool(name, arguments)

        return anyio.run(call)

    return ask


def good(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    found: dict[str, Any] | None = result.structured_content
    assert found is not None
    assert json.loads(result.content[0].text) == found  # type: ignore[union-attr]
    return found


def error(result: CallToolResult) -> dict[str, str]:
    assert result.is_error
    assert result.structured_content is not None
    found: dict[str, str] = result.structured_content["error"]
    assert result.content[0].text == f"{found['kind']}: {found['message']}"  # type: ignore[union-attr]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The embedded model, and a folder with two graphs: ``dallas``, whole and pruned, and ``bare``, whole alone."""
    folder = tmp_path_factory.mktemp("outside") / "graphs"
    model = Model(lambda: ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu"))
    found = Workplace(open_folder(folder), model, load_labels(), FeatureFolder(FEATURES), Limits(tokens=64, seconds=60))
    ask = asking(found)
    good(ask("trace_prompt", prompt=PROMPT, name="dallas"))
    os.link(folder / "dallas.safetensors", folder / "bare.safetensors")
    return found


@pytest.fixture(scope="module")
def ask(place: Workplace) -> Ask:
    return asking(place)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder: its size and when it was written."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir()
    }


@pytest.fixture
def nothing_written(place: Workplace) -> Iterator[None]:
    around = place.graphs.folder.parent
    before = files(around)
    yield
    assert files(around) == before


@pytest.mark.usefixtures("nothing_written")
class TestReading:
    def test_what_is_here_is_said(self, ask: Ask) -> None:
        found = good(ask("about"))
        assert found["model_state"] == "open"
        assert found["graphs"] == 2
        listed = good(ask("list_graphs"))
        assert [graph["name"] for graph in listed["graphs"]] == ["dallas", "bare"]
        assert "Dallas" in listed["graphs"][0]["prompt"]
        assert good(ask("list_graphs", limit=1, offset=1))["graphs"][0]["name"] == "bare"

    def test_a_graph_is_the_same_pruned_here_or_in_its_file(self, ask: Ask) -> None:
        infos = [good(ask("graph_info", graph=name)) for name in ("dallas", "bare")]
        assert [target["text"] for target in infos[0]["targets"]] == ["Austin"]
        assert infos[0] | {"name": "bare"} == infos[1]
        tops = [good(ask("top_nodes", graph=name)) for name in ("dallas", "bare")]
        assert tops[0] == tops[1]

    def test_nodes_edges_and_paths_lead_from_the_output_to_the_prompt(self, ask: Ask, place: Workplace) -> None:
        target = good(ask("graph_info", graph="dallas"))["targets"][0]["node"]
        inputs = good(ask("neighbours", graph="dallas", node=target))
        weights = [abs(each["weight"]) for each in inputs["neighbours"]]
        assert weights == sorted(weights, reverse=True)
        graph = place.whole("dallas")
        number = graph.nodes.numbers([target], "test")[0]
        row = dict(zip(*(column.tolist() for column in graph.edges.row(number)), strict=True))
        first = inputs["neighbours"][0]
        source = graph.nodes.numbers([first["node"]["id"]], "test")[0]
        assert first["weight"] == pytest.approx(row[source], rel=1e-5)
        outputs = good(ask("neighbours", graph="dallas", node=first["node"]["id"], direction="outputs"))
        assert target in [each["node"]["id"] for each in outputs["neighbours"]]
        found = good(ask("paths", graph="dallas", limit=3))["paths"]
        assert len(found) == 3
        assert all(path["nodes"][0]["id"].startswith("E_") and path["nodes"][-1]["id"] == target for path in found)
        assert "Austin" in found[0]["nodes"][-1]["words"]

    def test_features_are_found_by_what_they_are_called(self, ask: Ask) -> None:
        top = good(ask("top_nodes", graph="dallas", kind="feature", limit=1))["nodes"][0]
        found = good(ask("search_features", query=top["label"].upper(), graph="dallas"))
        assert top["id"] in [node for each in found["features"] for node in each["nodes"]]
        anywhere = good(ask("search_features", query=top["label"], layer=top["layer"], limit=200))
        assert (top["layer"], top["feature"]) in [(each["layer"], each["feature"]) for each in anywhere["features"]]
        known = good(ask("feature", layer=top["layer"], feature=top["feature"], examples=2))
        assert len(known["examples"]) == 2
        assert all("«" in text for text in known["examples"])

    def test_groups_and_comparisons(self, ask: Ask) -> None:
        found = good(ask("groups", graph="dallas"))
        assert not found["kept"]
        assert any(len(group["nodes"]) > 1 for group in found["groups"])
        assert len(found["groups"]) == found["of"], "a small graph is told whole"
        two = good(ask("groups", graph="dallas", limit=2, least=0.5))
        assert [group["name"] for group in two["groups"]] == [
            group["name"]
            for group in found["groups"]
            if group["influence"] >= sorted(each["influence"] for each in found["groups"])[-2]
        ]
        assert all(abs(each["share"]) >= 0.5 for group in two["groups"] for each in group["inputs"])
        same = good(ask("compare_graphs", a="dallas", b="bare"))
        assert same["difference"] == same["accounted"] == 0

    @pytest.mark.slow("takes 1.5 s")
    def test_the_model_tests_what_a_graph_says(self, ask: Ask) -> None:
        heads = good(ask("next_tokens", prompt=PROMPT))
        assert heads["next"][0]["text"] == "Austin"
        target = good(ask("graph_info", graph="dallas"))["targets"][0]["node"]
        inputs = good(ask("neighbours", graph="dallas", node=target))["neighbours"]
        features = [each["node"]["id"] for each in inputs if each["node"]["kind"] == "feature" and each["weight"] > 0]
        what_if = good(ask("intervene", graph="dallas", edits=[{"nodes": features, "how": "ablate"}]))
        (odds,) = [each for each in what_if["tokens"] if each["text"] == "Austin"]
        assert odds["probability_after"] < 0.5 < odds["probability_before"]
        moved = what_if["nodes"] + what_if["others"]
        assert not set(features) & {each["node"] for each in moved}, "what was edited is no result"
        assert all(each["before"] != each["after"] for each in moved)
        labels = load_labels()
        assert all(each["label"] == labels.get(_feature(each["node"]), "") for each in what_if["others"])
        split = good(ask("explain_edge", graph="dallas", source=features[0], target=target, limit=2))
        assert len(split["paths"]) <= 2
        assert split["residual"] < 1e-4
        told = good(ask("story", graph="dallas"))
        assert {"holds"} <= {sentence["status"] for sentence in told["sentences"]}


def _feature(node: str) -> tuple[int, int]:
    layer, index, _ = map(int, node.split("_"))
    return layer, index


HOSTILE: list[tuple[str, Mapping[str, Any]]] = [
    ("graph_info", {"graph": "../secret"}),
    ("graph_info", {"graph": "/etc/passwd"}),
    ("graph_info", {"graph": "..\\secret"}),
    ("graph_info", {"graph": "linked"}),
    ("graph_info", {"graph": "graph-metadata"}),
    ("graph_info", {"graph": "a\0b"}),
    ("graph_info", {"graph": ""}),
    ("graph_info", {"graph": "x" * 300}),
    ("graph_info", {"graph": 7}),
    ("graph_info", {"graph": ["dallas"]}),
    ("graph_info", {}),
    ("graph_info", {"graph": "dallas", "path": "/etc/passwd"}),
    ("top_nodes", {"graph": "dallas", "limit": 10**30}),
    ("top_nodes", {"graph": "dallas", "limit": -1}),
    ("top_nodes", {"graph": "dallas", "limit": True}),
    ("neighbours", {"graph": "dallas", "node": "99_99_99"}),
    ("neighbours", {"graph": "dallas", "node": "<script>"}),
    ("paths", {"graph": "dallas", "target": "nowhere"}),
    ("feature", {"layer": 10**9, "feature": 10**9}),
    ("intervene", {"graph": "dallas", "edits": []}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["0_1_1"], "how": "set", "amount": float("nan")}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["0_1_1"], "how": "set", "amount": float("inf")}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["E_1_1"], "how": "ablate"}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["9_9_9"], "how": "ablate"}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["0_1_1"] * 501, "how": "ablate"}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["0_1_1"], "how": "explode"}]}),
    ("intervene", {"graph": "dallas", "edits": [{"nodes": ["0_1_1"], "how": "scale"}]}),
    ("explain_edge", {"graph": "dallas", "source": "5_101_9", "target": "E_1_1"}),
    ("compare_graphs", {"a": "dallas", "b": "../dallas"}),
    ("compare_graphs", {"a": "dallas", "b": "dallas", "target": "Paris"}),
    ("next_tokens", {"prompt": "x" * (MOST_PROMPT + 1)}),
    ("next_tokens", {"prompt": "Dallas " * 100}),
    ("trace_prompt", {"prompt": ""}),
    ("trace_prompt", {"prompt": "Dallas " * 100}),
    ("trace_prompt", {"prompt": PROMPT, "name": "dallas"}),
    ("trace_prompt", {"prompt": PROMPT, "name": "../dallas"}),
    ("trace_prompt", {"prompt": PROMPT, "name": "linked"}),
    ("trace_prompt", {"prompt": PROMPT, "name": "linked", "replace": True}),
    ("trace_prompt", {"prompt": PROMPT, "name": "dangling", "replace": True}),
    ("trace_prompt", {"prompt": PROMPT, "max_feature_nodes": 0}),
    ("trace_prompt", {"prompt": PROMPT, "node_threshold": float("nan")}),
    ("trace_prompt", {"prompt": PROMPT, "targets": ["no such token"]}),
    ("trace_prompt", {"prompt": PROMPT, "targets": ["sae:/etc:0:1:2"]}),
    ("trace_prompt", {"prompt": PROMPT, "targets": ["direction:/etc/passwd:hook_resid_pre:0:1"]}),
    ("trace_prompt", {"prompt": PROMPT, "targets": ["attn:L99H99:1:1"]}),
    ("no_such_tool", {}),
]


@pytest.fixture
def links(place: Workplace) -> Iterator[None]:
    """Links out of the folder, to a graph that is there and to a file that is not."""
    folder = place.graphs.folder
    secret = folder.parent / "secret.json"
    secret.write_bytes((folder / "dallas.json").read_bytes())
    made = [folder / "linked.json", folder / "dangling.safetensors"]
    made[0].symlink_to(secret)
    made[1].symlink_to(folder.parent / "new.safetensors")
    yield
    for path in [*made, secret]:
        path.unlink()


def test_arguments_that_mean_harm_are_refused_and_nothing_is_written(ask: Ask, place: Workplace, links: None) -> None:
    before = files(place.graphs.folder.parent)
    for name, arguments in HOSTILE:
        found = error(ask(name, **arguments))
        assert found["kind"] in ("InputError", "NotThere", "Conflict", "FileFormatError"), (name, arguments, found)
        assert "failure of ours" not in found["message"]
        assert len(found["message"]) < 2000, (name, arguments)
    assert files(place.graphs.folder.parent) == before
    names = [graph["name"] for graph in good(ask("list_graphs"))["graphs"]]
    assert names == ["dallas", "bare"]


def test_tools_say_what_they_do(place: Workplace) -> None:
    async def listed() -> Any:
        async with Client(make_server(place)) as client:
            return await client.list_tools()

    tools = {tool.name: tool for tool in anyio.run(listed).tools}
    assert tools.keys() == {tool.name for tool in TOOLS}
    for tool in tools.values():
        assert tool.title
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema["type"] == "object"
        assert tool.annotations.read_only_hint is (tool.name != "trace_prompt")
        assert tool.annotations.open_world_hint is False


def test_without_a_model_graphs_are_read_and_nothing_is_traced(place: Workplace) -> None:
    ask = asking(Workplace(place.graphs))
    assert good(ask("about"))["model_state"] == "none"
    assert good(ask("top_nodes", graph="dallas"))["of"] > 10
    assert "without a model" in error(ask("trace_prompt", prompt=PROMPT))["message"]
    assert "without a model" in error(ask("explain_edge", graph="dallas", source="a", target="b"))["message"]


def test_a_model_that_does_not_open_says_why(place: Workplace) -> None:
    def fail() -> ReplacementModel:
        raise InputError("no such model; name another")

    ask = asking(Workplace(place.graphs, Model(fail)))
    assert "no such model; name another" in error(ask("next_tokens", prompt="x"))["message"]
    assert good(ask("about"))["model_error"] == "no such model; name another"


def test_a_call_that_takes_too_long_is_given_up(place: Workplace) -> None:
    slow = Workplace(place.graphs, place.model, limits=Limits(seconds=0.01))
    found = error(asking(slow)("trace_prompt", prompt=PROMPT))
    assert found["kind"] in ("ResourceError", "Busy")
    assert "seconds" in found["message"]


def test_an_answer_over_the_limit_is_refused_and_not_cut(
    ask: Ask, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuit_tracer.assistants.calls.MOST_BYTES", 1000)
    assert "ask for less" in error(ask("top_nodes", graph="dallas"))["message"]
    assert MOST_BYTES > 1000


def test_progress_is_told(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.assistants.calls.GLANCE", 0.001)
    told: list[str | None] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async def call() -> None:
        async with Client(make_server(place)) as client:
            asked = {"prompt": PROMPT, "name": "dallas", "replace": True}
            assert not (await client.call_tool("trace_prompt", asked, progress_callback=hear)).is_error

    anyio.run(call)
    assert len(told) > 1
