"""The table of readers: what writes a valid miniature, and what reads it to the last number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from circuit_tracer import http
from circuit_tracer.cli.prompts import read_jobs
from circuit_tracer.cli.steer import _vector
from circuit_tracer.features import neuronpedia_labels
from circuit_tracer.features.build_folder import BuildFolder
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.folder import MANIFEST, FeatureFolder, write_index, write_layer
from circuit_tracer.features.labels import Label, describe, load_labels, write_labels
from circuit_tracer.features.summary import BINS, Examples, Keep, LayerSummary
from circuit_tracer.files import read_bytes
from circuit_tracer.files.digests import write_sealed
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.formats import read_graph, write_graph
from circuit_tracer.graph.files.graph_index import INDEX_NAME, read_index, usable_entries
from circuit_tracer.graph.files.read_json import features_of, from_json, load_viewer_json
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.autoencoders import load_autoencoders
from circuit_tracer.viewer.server.columns import Columns
from circuit_tracer.viewer.server.head_table import read_head_table
from tests.fuzz.data_readers import DATA_READERS
from tests.fuzz.many_readers import MANY_READERS
from tests.fuzz.probe_readers import PROBE_READERS
from tests.fuzz.reader import D, F, L, Reader, bare
from tests.support import published
from tests.support.autoencoder_layouts import AUTOENCODERS
from tests.support.dictionaries import random_clt, random_set, uniform
from tests.support.graph_cases import random_edge_heads, random_graph, random_score, random_validation
from tests.support.transcoder_layouts import LAYOUTS, Layout

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


# ---- graphs


def _graph(name: str, **options: Any) -> Reader:
    def write(folder: Path) -> None:
        graph = random_graph(n_active=8, n_selected=6, n_pos=3, n_layers=2, n_targets=2)
        if name == "graph.safetensors":
            graph.validation, graph.edge_heads = random_validation(), random_edge_heads(graph)
            graph.scores = [random_score()]
            graph.labels, graph.records = {(0, 1): "one"}, {(0, 1): b"12345", (1, 2): b"6"}
        write_graph(graph, folder / name)

    def read(folder: Path) -> Graph:
        graph = read_graph(folder / name)
        repr(graph), graph.nodes, graph.blocks, graph.residual
        return graph

    return Reader(
        name, write, read, lambda graph, folder: (write_graph(graph, folder / name), read(folder))[1], **options
    )


def _write_viewed(folder: Path) -> None:
    create_graph_files(random_graph(n_active=8, n_selected=6, n_pos=3, n_layers=2, n_targets=2), "small", folder)
    (folder / INDEX_NAME).unlink()


def _write_packed(folder: Path) -> None:
    _write_viewed(folder)
    (folder / "small.json.gz").write_bytes(gzip.compress((folder / "small.json").read_bytes(), mtime=0))
    (folder / "small.json").unlink()


def _viewed(path: Path) -> Any:
    """As the server and the command line read it."""
    document = load_viewer_json(path)
    graph = from_json(path)
    columns = Columns(document)
    columns.part(most_nodes=3, most_links=2)
    list(features_of(document))
    View.from_q_params(document.get("qParams") or {})
    return document, graph.graph["q_params"], sorted(graph.edges(data="weight"))


def _write_index(folder: Path) -> None:
    create_graph_files(random_graph(), "small", folder)
    (folder / "small.json").unlink()


def _index(folder: Path) -> Any:
    usable_entries(folder)
    return read_index(folder)


# ---- dictionaries


def _write_native(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    make = random_set if kind == "transcoder_set" else random_clt
    transcoders = make("jump_relu", skip=True, n_layers=L, n_features=F, d_model=D)
    transcoders.to_safetensors(folder)
    (folder / "config.yaml").write_text(
        "\n".join(f"{name}: {value}" for name, value in {"model_kind": kind, "model_name": "a/b", **HOOKS}.items())
    )


def _write_npz(folder: Path, pack: bool) -> None:
    for layer in range(L):
        names = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
        arrays = {name: uniform(*shape).abs().numpy() for name, shape in names.items()}
        (np.savez_compressed if pack else np.savez)(folder / f"layer_{layer}.npz", **arrays)


def _write_sparsify(folder: Path) -> None:
    for layer in range(L):
        named = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
        path = folder / f"layers.{layer}.mlp"
        path.mkdir()
        save_file({name: uniform(*shape) for name, shape in named.items()}, path / "sae.safetensors")
        config = {"d_in": D, "k": 3, "activation": "topk", "transcode": True, "num_latents": F}
        (path / "cfg.json").write_text(json.dumps(config))


def _write_saelens(folder: Path) -> None:
    for layer in range(L):
        named = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
        path = folder / f"layer_{layer}"
        path.mkdir()
        save_file({name: uniform(*shape).abs() for name, shape in named.items()}, path / "sae_weights.safetensors")
        (path / "cfg.json").write_text(json.dumps({"architecture": "jumprelu_transcoder", "d_in": D, "d_sae": F}))


def _write_autoencoders(folder: Path) -> None:
    _write_saelens(folder)
    for layer in range(L):
        described = {"architecture": "jumprelu", "d_in": D, "d_sae": F, "hook_name": f"blocks.{layer}.hook_resid_post"}
        (folder / f"layer_{layer}" / "cfg.json").write_text(json.dumps(described))


def _write_pickled(folder: Path) -> None:
    _written(AUTOENCODERS["dictionary-learning-AutoEncoderTopK"][0], folder)


def _autoencoders(folder: Path, width: int = D) -> Any:
    loaded = load_autoencoders(folder)
    n_layers = len(loaded.layers)
    return loaded.layers, loaded.dictionary(torch.linspace(-1, 1, n_layers * 3 * width).reshape(n_layers, 3, width))


def _published(name: str) -> Reader:
    layout = LAYOUTS[name]
    return Reader(name, lambda folder: _written(layout, folder), lambda folder: _dictionary(folder, layout.hooks))


def _written(layout: Layout, folder: Path) -> None:
    torch.manual_seed(0)
    layout.write(folder)


def _dictionary(folder: Path, hooks: dict[str, str] | None = None) -> Any:
    if hooks is None:
        hooks = {} if (folder / "config.yaml").is_file() else HOOKS
    loaded, _ = load_transcoder_from_hub(folder, **hooks)
    x = torch.linspace(-1, 1, loaded.n_layers * 3 * loaded.d_model).reshape(loaded.n_layers, 3, loaded.d_model)
    return loaded.scan, loaded.kind, loaded(x.to(loaded.dtype))


# ---- features


def _record(index: int) -> dict[str, Any]:
    example = {
        "tokens": ["a", " b"],
        "tokens_acts_list": [0, 1.5],
        "train_token_ind": 1,
        "is_repeated_datapoint": False,
    }
    effects = {"top_logits": ["x"], "bottom_logits": ["y"], "top_logit_values": [2.5], "bottom_logit_values": [-1]}
    return {
        "transcoder_id": "t", "layer": 0, "index": index, "act_min": 0, "act_max": 1.5, "quantile_values": [1, 1.5],
        "examples_quantiles": [{"quantile_name": "Top activations", "examples": [example]}], "histogram": [3, 1],
        "n_active": 4, "n_tokens": 90, "activation_frequency": 0.04, "logit_spread": 0.5, "n_vocabulary": 50, **effects,
    }  # fmt: skip


def _write_features(folder: Path) -> None:
    records = {layer: [(index, {**_record(index), "layer": layer}) for index in (1, 3)] for layer in range(L)}
    write_index(folder, {layer: write_layer(folder, layer, 5, row) for layer, row in records.items()})
    write_sealed(folder / MANIFEST, {"version": 1, "settings": {"tokens": 5}})


def _features(folder: Path) -> Any:
    features = FeatureFolder(folder)
    found = {place: features.get(place) for place in features}
    return found, [describe(record) for record in found.values()], features.manifest


def _write_labels(folder: Path) -> None:
    write_labels(folder, {(0, 1): Label("a name", "record"), (1, 3): Label("another", "openai:x", 0.5)})


def _write_heads(folder: Path) -> None:
    heads = [{"layer": 0, "head": head, "induction": 0.5, "ablation": None} for head in range(2)]
    table = {"model": "m", "scores": {"induction": "what followed", "ablation": "loss without"}, "heads": heads}
    (folder / "heads.json").write_text(json.dumps(table))


def _write_fetched(folder: Path) -> None:
    neuronpedia_labels._add(folder / "0-set.json", {1: "a name", 2: None})


MESSAGES = [{"role": "user", "content": "Say hello."}]


def _write_answers(folder: Path) -> None:
    path = ChatModel("m", "http://localhost", folder)._path(MESSAGES, 9)
    path.parent.mkdir()
    write_sealed(path, {"model": "m", "messages": MESSAGES, "answer": "Hello."})


def _answer(folder: Path) -> Any:
    chat = ChatModel("m", "http://localhost", folder)
    return chat.ask(MESSAGES, 9) if chat.known(MESSAGES, 9) else "the server would be asked"


KEEP = Keep(2, 2)


def _summary() -> LayerSummary:
    feature, floats = np.array([1, 4]), np.array([0.5, 1.5], np.float32)
    examples = Examples(
        feature, floats, np.array([3, 9]), np.array([7, 2**63 + 5], np.uint64), np.zeros((2, 3), np.int32),
        np.ones((2, 3), np.float32),
    )  # fmt: skip
    counts = np.array([2, 1])
    bins = np.zeros((2, BINS), np.int64)
    bins[:, 40] = counts
    return LayerSummary(feature, counts, floats, floats, np.array([0, 1]), bins, examples, examples)


def _write_build(folder: Path) -> None:
    build = BuildFolder(folder / "build", {"a": 1}, 1, KEEP)
    for _ in range(3):
        build.add([_summary()], {"tokens": 9, "counted": 8, "corpus": [1, 2], "complete": False})


def _build(folder: Path) -> Any:
    build = BuildFolder(folder / "build", {"a": 1}, 1, KEEP)
    return build.progress, build.whole(0)


# ---- other


def _write_direction(folder: Path) -> None:
    save_file({"v": uniform(D)}, folder / "v.safetensors")


def _write_conversation(folder: Path) -> None:
    (folder / "chat.json").write_text(json.dumps([{"role": "user", "content": "hello"}]))


def _write_http(folder: Path) -> None:
    (folder / "answer.json").write_text(json.dumps({"error": {"message": "no", "code": 3}, "details": "x"}))


def _http(folder: Path) -> Any:
    data = read_bytes(folder / "answer.json", http.LARGEST_ANSWER)
    return http._said(data), http._parsed("http://localhost", data)


READERS: tuple[Reader, ...] = (
    bare(_graph("graph.safetensors")),
    _graph("graph.pt", sealed=True),
    bare(_graph("graph.graphml")),
    bare(_graph("graph.json")),
    bare(Reader("viewer JSON", _write_viewed, lambda folder: _viewed(folder / "small.json"))),
    bare(Reader("viewer JSON, packed", _write_packed, lambda folder: _viewed(folder / "small.json.gz"), sealed=True)),
    bare(Reader("graph index", _write_index, _index)),
    bare(Reader("transcoders", lambda folder: _write_native("transcoder_set", folder), _dictionary)),
    bare(Reader("cross-layer transcoder", lambda folder: _write_native("cross_layer_transcoder", folder), _dictionary)),
    Reader("npz", lambda folder: _write_npz(folder, pack=False), _dictionary),
    Reader("npz, packed", lambda folder: _write_npz(folder, pack=True), _dictionary, sealed=True),
    Reader("sparsify", _write_sparsify, _dictionary),
    Reader("SAELens", _write_saelens, _dictionary),
    Reader("autoencoders", _write_autoencoders, _autoencoders),
    Reader("autoencoders, pickled", _write_pickled, lambda folder: _autoencoders(folder, published.D)),
    _published("clt-training"),
    _published("clt-training-cross-layer"),
    _published("open-moss"),
    _published("clt-forge"),
    _published("crosslayer-coding"),
    Reader("features", _write_features, _features),
    bare(Reader("labels", _write_labels, load_labels)),
    bare(Reader("heads", _write_heads, lambda folder: read_head_table(folder / "heads.json").model_dump())),
    Reader("fetched labels", _write_fetched, lambda folder: neuronpedia_labels._read(folder / "0-set.json")),
    Reader("answers", _write_answers, _answer),
    Reader("features, unfinished", _write_build, _build),
    *DATA_READERS,
    *MANY_READERS,
    *PROBE_READERS,
    Reader("direction", _write_direction, lambda folder: _vector(folder / "v.safetensors")),
    Reader("conversation", _write_conversation, lambda folder: read_jobs(str(folder / "chat.json"), None, True, "x")),
    Reader("answer of a server", _write_http, _http),
)
