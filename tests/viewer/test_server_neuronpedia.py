"""Neuronpedia's graph-server protocol, spoken to as its site does."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from circuit_tracer.demo import PROMPT
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.interventions import CleanRun, FeatureAt, apply_edits, set_to
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.server import Server
from circuit_tracer.viewer.server.chat_turns import Frame, frames, parse, render
from circuit_tracer.viewer.server.neuronpedia import neuronpedia_id
from tests.support.asking import Answer, ask


def said(server: Server, path: str, body: Any = None) -> Answer:
    """A request without our token, with the secret: all that Neuronpedia sends."""
    return ask(server, path, body, token=False, headers={"x-secret-key": "secret"})


def generate(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "model_id": "model", "slug_identifier": "np-1", "user_id": "someone", **more}


def test_generated_graphs_are_those_that_its_viewer_shows(served: Server, demo_graph: Graph) -> None:
    answer = said(served, "/generate-graph", generate())
    assert answer.status == 200
    document = answer.json
    assert validate_document(document, "neuronpedia") == []
    metadata = document["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("np-1", "model")
    assert metadata["info"]["creator_name"] == "someone"
    settings = {"max_n_logits": 10, "desired_logit_prob": 0.95, "batch_size": 48, "max_feature_nodes": 10_000}
    assert metadata["generation_settings"] == settings
    assert metadata["pruning_settings"]["edge_threshold"] == 0.98
    assert metadata["prompt_tokens"] == demo_graph.token_strings
    assert ask(served, "/api/graphs").json["graphs"][0]["slug"] == "small"  # nothing was saved here


class Storage(http.server.BaseHTTPRequestHandler):
    """Takes what is put there, as a signed address does."""

    taken: list[tuple[str, dict[str, str], bytes]]
    status = 200

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, dict(self.headers), data))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def storage() -> Iterator[Any]:
    handler: Any = type("Taking", (Storage,), {"taken": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}/put?signature=x", handler=handler)
    server.shutdown()


@pytest.mark.parametrize("compress", [False, True])
def test_with_a_signed_address_the_graph_is_sent_there(served: Server, storage: Any, compress: bool) -> None:
    answer = said(served, "/generate-graph", generate(signed_url=storage.address, compress=compress))
    assert "uploaded successfully" in answer.json["success"]
    ((path, headers, data),) = storage.handler.taken
    assert path == "/put?signature=x"
    assert headers["Content-Type"] == "application/json"
    assert (headers.get("Content-Encoding") == "gzip") == compress
    assert json.loads(gzip.decompress(data) if compress else data)["metadata"]["slug"] == "np-1"


def test_an_upload_that_fails_is_said(served: Server, storage: Any) -> None:
    storage.handler.status = 403
    assert "403" in said(served, "/generate-graph", generate(signed_url=storage.address)).json["error"]
    assert "error" in said(served, "/generate-graph", generate(signed_url="http://127.0.0.1:1/")).json
    answer = said(served, "/generate-graph", generate(signed_url="file:///etc/passwd"))
    assert (answer.status, "http" in answer.error) == (400, True)


def test_requests_that_cannot_be_met(served: Server) -> None:
    assert said(served, "/generate-graph", generate(model_id="gpt-5")).status == 400
    assert "attribution_targets" in said(served, "/generate-graph", generate(enable_qk_tracing=True)).error
    far = generate(enable_qk_tracing=True, attribution_targets=["attn:L0H0:-1:99"])
    assert "key 99" in said(served, "/generate-graph", far).error
    assert "slug" in said(served, "/generate-graph", generate(slug_identifier="../x")).error
    with served.site.jobs.alone("a test"):
        for path, body in (
            ("/generate-graph", generate()),
            ("/forward-pass", {"prompt": "a"}),
            ("/steer", steer_body()),
        ):
            answer = said(served, path, body)
            assert (answer.status, answer.error.startswith("Server busy")) == (503, True)
        assert said(served, "/check-busy").json == {"busy": True}
    assert said(served, "/check-busy").json == {"busy": False}


def test_qk_tracing_explains_the_heads_that_are_named(served: Server) -> None:
    named = {"attribution_targets": ["attn:L2H1:-1:1:rest", "attn:L1H0:2:1"], "node_threshold": 1.0}
    document = said(served, "/generate-graph", generate(enable_qk_tracing=True, qk_topk=3, **named)).json
    assert validate_document(document, "neuronpedia") == []
    targets = [node for node in document["nodes"] if "qk_tracing_results" in node]
    assert [node["token"][:4] for node in targets] == ["L2H1", "L1H0"]
    known = {node["node_id"] for node in document["nodes"]} | set(document["qk_only_nodes"])
    for node in targets:
        results = node["qk_tracing_results"]
        assert [len(results[name]) for name in sorted(results)] == [3, 3, 3]
        assert known >= {name for each in results.values() for row in each for name in row[:-1]}


def test_forward_pass(served: Server, demo_graph: Graph) -> None:
    found = said(served, "/forward-pass", {"prompt": PROMPT, "max_n_logits": 3, "desired_logit_prob": 0.9999}).json
    assert found["input_tokens"] == demo_graph.token_strings
    assert found["total_salient_tokens"] == len(found["salient_logits"]) == 3
    first = found["salient_logits"][0]
    assert first["token"] == demo_graph.targets.label[0]
    assert first["token_id"] == int(demo_graph.targets.token_id[0])
    assert first["probability"] == pytest.approx(float(demo_graph.targets.weight[0]), abs=1e-5)
    total = sum(each["probability"] for each in found["salient_logits"])
    assert found["cumulative_probability"] == pytest.approx(total)
    failed = said(served, "/forward-pass", {"prompt": "the " * 100})
    assert (failed.status, "64" in failed.json["error"]) == (200, True)


def steer_body(**feature: Any) -> dict[str, Any]:
    one = {"layer": 0, "index": 1, "token_active_position": 1, "steer_position": 1, "delta": 1.0, **feature}
    return {"model_id": "model", "prompt": PROMPT, "features": [one], "n_tokens": 3}


def test_steering(served: Server, demo_model: ReplacementModel, demo_graph: Graph) -> None:
    clean = CleanRun(demo_model, PROMPT)
    row = int(demo_graph.activation_values.argmax())
    layer, position, index = demo_graph.active_features[row].tolist()
    value = float(demo_graph.activation_values[row])
    place = {"layer": layer, "index": index, "token_active_position": position, "steer_position": position}
    body = {**steer_body(**place, delta=3.0), "freeze_attention": True, "seed": 3}
    found = said(served, "/steer", body).json
    assert set(found) == {
        "DEFAULT_GENERATION",
        "STEERED_GENERATION",
        "DEFAULT_LOGITS_BY_TOKEN",
        "STEERED_LOGITS_BY_TOKEN",
    }
    tokens = demo_graph.token_strings
    assert tokens is not None
    for name in ("DEFAULT", "STEERED"):
        rows = found[f"{name}_LOGITS_BY_TOKEN"]
        assert [each["token"] for each in rows[: len(tokens)]] == tokens
        assert all(each["top_logits"] == [] for each in rows[: len(tokens) - 1])
        assert len(rows[len(tokens) - 1]["top_logits"]) == 5
        assert found[f"{name}_GENERATION"] == "".join(each["token"] for each in rows)
        assert len(rows) <= len(tokens) + 3
        assert rows[len(tokens)]["token"] == rows[len(tokens) - 1]["top_logits"][0]["token"]
    outcome = apply_edits(demo_model, clean, [set_to(FeatureAt(layer, position, index), value + 3.0)])
    top = {each.text: each.probability_after for each in outcome.tokens(5)}
    for each in found["STEERED_LOGITS_BY_TOKEN"][len(tokens) - 1]["top_logits"]:
        assert each["prob"] == pytest.approx(top[each["token"]], abs=1e-5)


@pytest.mark.few
@pytest.mark.parametrize(
    ("feature", "part"),
    [
        ({"ablate": True}, "delta must be None"),
        ({"delta": None}, "delta must be provided"),
        ({"steer_generated_tokens": True}, "position must be None"),
        ({"steer_position": None}, "position must be provided"),
        ({"steer_position": 60}, "out of bounds"),
        ({"steer_position": -1}, "out of bounds"),
        ({"token_active_position": 60}, "out of bounds"),
        ({"layer": 9}, "layer 9"),
        ({"index": 10_000}, "features 0 to 447"),
    ],
)
def test_its_rules_for_features(served: Server, feature: dict[str, Any], part: str) -> None:
    answer = said(served, "/steer", steer_body(**feature))
    assert (answer.status, part in answer.error) == (400, True), answer.error


def test_generated_tokens_and_the_opening_token(served: Server) -> None:
    same = said(served, "/steer", steer_body(steer_position=0, token_active_position=0)).json
    assert same["STEERED_GENERATION"] == same["DEFAULT_GENERATION"]
    generated = steer_body(steer_position=None, steer_generated_tokens=True, delta=None, ablate=True)
    assert said(served, "/steer", generated).status == 200


TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "gemma": "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
}


@pytest.fixture(params=TEMPLATES)
def chat_tokenizer(request: pytest.FixtureRequest, demo_model: ReplacementModel) -> Any:
    import copy

    tokenizer = copy.deepcopy(demo_model.tokenizer)
    tokenizer.chat_template = TEMPLATES[request.param]
    return tokenizer


CONVERSATIONS = [
    [("user", "hello there")],
    [("user", "hello"), ("assistant", "Hi! 1 < 2"), ("user", "and\nnow?")],
    [("user", "complete"), ("assistant", "the capital of")],
]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_turns_survive_the_template_and_come_back(chat_tokenizer: Any, turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = render(messages, chat_tokenizer)
    if turns[-1][0] == "assistant":
        assert text.endswith(turns[-1][1])
    else:
        messages.append({"role": "assistant", "content": ""})
    assert parse(text.removeprefix(chat_tokenizer.bos_token), frames(chat_tokenizer)) == messages


def test_plain_text_has_no_turns(served: Server, chat_tokenizer: Any) -> None:
    assert parse("plain text", frames(chat_tokenizer)) is None
    found = said(served, "/parse-chat-prompt", {"prompt": f"<s>{PROMPT}"}).json
    assert found == {"messages": None, "is_chat": False, "prompt": PROMPT, "unsteerable_positions": [0]}
    assert parse("", [Frame("user", "<u>", "</u>")]) is None


def test_a_model_with_a_chat_template(graph_folder: Path, demo_model: ReplacementModel, chat_tokenizer: Any) -> None:
    from circuit_tracer.viewer.server import serve

    chatting = ReplacementModel(demo_model.parts, demo_model.transcoders, chat_tokenizer)
    with serve(graph_folder, port=0, model=chatting, neuronpedia_secret="secret") as server:
        assert ask(server, "/api/session").json["model"]["chat"] is True
        messages = [{"role": "user", "content": "the capital of Texas is"}]
        shown = ask(server, "/api/tokens", {"messages": messages}).json["tokens"]
        passed = said(server, "/forward-pass", {"messages": messages}).json
        assert passed["input_tokens"] == [token["text"] for token in shown]
        back = said(server, "/parse-chat-prompt", {"prompt": passed["prompt"]}).json
        assert back["messages"] == [*messages, {"role": "assistant", "content": ""}]
        refused = ask(server, "/api/tokens", {"messages": [{"role": "assistant", "content": "b"}] * 2})
        assert refused.status == (400 if "alternate" in chat_tokenizer.chat_template else 200)


def test_names_of_models() -> None:
    assert neuronpedia_id("google/gemma-2-2b") == "gemma-2-2b"
    assert neuronpedia_id("Qwen/Qwen3-4B") == "qwen3-4b"
