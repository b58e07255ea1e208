"""The table of readers: what writes a valid miniature, and what reads it to the last number."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from circuit_tracer import http
from circuit_tracer.cli.prompts import read_jobs
from circuit_tracer.cli.steer import _vector
from circuit_tracer.errors import ResourceError
from circuit_tracer.features import neuronpedia_labels
from circuit_tracer.features.build_folder import BuildFolder
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.folder import MANIFEST, FeatureFolder, write_index, write_layer
from circuit_tracer.features.labels import Label, describe, load_labels, write_labels
from circuit_tracer.features.summary import BINS, Examples, Keep, LayerSummary
from circuit_tracer.files import read_bytes, read_json
from circuit_tracer.files.digests import sealed, write_sealed
from circuit_tracer.files.tensors import open_tensor_file, unpack_tensors
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.formats import read_graph, write_graph
from circuit_tracer.graph.files.graph_index import INDEX_NAME, read_index, usable_entries
from circuit_tracer.graph.files.native import HEADER_KEY, VERSION
from circuit_tracer.graph.files.read_json import features_of, from_json, load_viewer_json
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.parquet import ParquetFiles
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles
from circuit_tracer.training.config.files import dump, load, preset_names
from circuit_tracer.training.data.given import wire, write_activations
from circuit_tracer.training.data.given.description import check_rows
from circuit_tracer.training.data.given.shards import Shards
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.log import JsonLog
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.autoencoders import load_autoencoders
from circuit_tracer.viewer.server.columns import Columns
from circuit_tracer.viewer.server.head_table import read_head_table
from tests.support.data_cases import batches, config, stream, texts, write_jsonl
from tests.support.dictionaries import random_clt, random_set, uniform
from tests.support.graph_cases import random_edge_heads, random_graph, random_score, random_validation
from tests.support.loop_cases import Run, tensors
from tests.support.transcoder_layouts import LAYOUTS, Layout

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
L, F, D = 2, 7, 5


@dataclass(frozen=True)
class Reader:
    """write: a valid miniature into an empty folder. load: all of it, as values that `digest` can compare.

    again: writes what was loaded anew, so that something else than the original is at least valid. sealed: the format has
    checksums over all that counts, so that damaged bytes are never another document.
    """

    name: str
    write: Callable[[Path], Any]
    load: Callable[[Path], Any]
    again: Callable[[Any, Path], Any] | None = None
    sealed: bool = False
    slow: bool = False  # tens of milliseconds a try; left out of the short run


# ---- graphs


def _graph(name: str, **options: Any) -> Reader:
    def write(folder: Path) -> None:
        graph = random_graph(n_active=8, n_selected=6, n_pos=3, n_layers=2, n_targets=2)
        if name == "graph.safetensors":
            graph.validation, graph.edge_heads = random_validation(), random_edge_heads(graph)
            graph.scores = [random_score()]
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


def _autoencoders(folder: Path) -> Any:
    loaded = load_autoencoders(folder)
    return loaded.layers, loaded.dictionary(torch.linspace(-1, 1, L * 3 * D).reshape(L, 3, D))


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


# ---- training


@cache
def _run() -> Run:
    return Run("skip", "jumprelu")


def _write_checkpoint(folder: Path) -> None:
    checkpoint.save(_run().state(), folder, {"data": {"position": [1, 2]}}, FeatureRanks())


def _checkpoint(folder: Path) -> Any:
    made = checkpoint.latest(folder)
    assert made is not None
    state = _run().state()
    checkpoint.load_(state, made)
    return made.content, tensors(state)


def _write_log(folder: Path) -> None:
    lines = [{"step": step, "loss": 1.5, "nmse_S": [0.5, None]} for step in range(1, 5)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(sealed(line))}\n" for line in lines))


def _log(folder: Path) -> Any:
    with JsonLog(folder / "log.jsonl", 3):
        return (folder / "log.jsonl").read_text()


def _write_config(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        dump(load(preset_names()[0], {"run.out": "x", "model.name": "m", "data.path": "y"}))
    )


def _write_cache(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", texts(6))
    list(batches(stream(config(folder, data__cache=folder / "cache"))))


def _cached(folder: Path) -> Any:
    return [
        tensors_of for batch in batches(stream(config(folder, data__cache=folder / "cache"))) for tensors_of in [batch]
    ]


def _write_position(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", texts(6))
    source = stream(config(folder))
    next(batches(source))
    (folder / "state.json").write_text(json.dumps(source.state()))


def _position(folder: Path) -> Any:
    source = stream(config(folder))
    source.restore(read_json(folder / "state.json"))
    return next(batches(source), None)  # the end of the data is a place too


# ---- text


def _write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one two", "three", None] * 5, "id": list(range(15))})
    parquet.write_table(table, folder / "text.parquet", row_group_size=4)


def _write_lines(folder: Path) -> None:
    write_jsonl(folder / "a.jsonl", texts(5))


def _write_text(folder: Path) -> None:
    (folder / "a.txt").write_text("word ünd " * 99, encoding="utf-8")


def _write_array(folder: Path) -> None:
    np.save(folder / "ids.npy", np.arange(60, dtype=np.int32).reshape(6, 10))


def _write_tensor(folder: Path) -> None:
    save_file({"ids": torch.arange(60, dtype=torch.int32).reshape(6, 10)}, folder / "ids.safetensors")


def _write_direction(folder: Path) -> None:
    save_file({"v": uniform(D)}, folder / "v.safetensors")


def _write_packed_lines(folder: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(5))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def _some_rows() -> dict[str, torch.Tensor]:
    return {"x": uniform(F, L, D), "y": uniform(F, L, D), "document": torch.arange(F)}


def _write_rows(folder: Path) -> None:
    hooks = {"input_hook": "mlp.hook_in", "output_hook": "mlp.hook_out"}
    write_activations(folder, [_some_rows()], model="tiny", layers=range(L), **hooks, shard_bytes=300)


def _rows(folder: Path) -> Any:
    source = Shards(str(folder))
    found = list(source.parts(0, False))
    for part in found:
        check_rows(part, source.description, str(folder))
    return [source.description.facts(), found]


def _write_message(folder: Path) -> None:
    header = json.dumps({"kind": "rows", "first": 0, "rows": F}).encode()
    payload = wire.packed(_some_rows())
    prefix = wire.PREFIX.pack(wire.MAGIC, len(header), len(payload))
    (folder / "message.bin").write_bytes(prefix + header + payload)


@dataclass
class _Connection:
    recv: Callable[[int], bytes]


def _message(folder: Path) -> Any:
    """As a client gets it from a connection that ends behind it."""
    sent = io.BytesIO(read_bytes(folder / "message.bin", 2**20))
    try:
        header, payload = wire.receive(cast(socket.socket, _Connection(sent.read)), "the server")
    except ConnectionError as error:  # after which the client tries again
        raise ResourceError(str(error)) from error
    return [header, unpack_tensors(payload, "a message")]


def _documents(source: Any) -> Any:
    return [
        document for document, _ in islice(source.read(None), 1000)
    ]  # a file of terabytes is read as it is trained on


def _write_conversation(folder: Path) -> None:
    (folder / "chat.json").write_text(json.dumps([{"role": "user", "content": "hello"}]))


def _write_http(folder: Path) -> None:
    (folder / "answer.json").write_text(json.dumps({"error": {"message": "no", "code": 3}, "details": "x"}))


def _http(folder: Path) -> Any:
    data = read_bytes(folder / "answer.json", http.LARGEST_ANSWER)
    return http._said(data), http._parsed("http://localhost", data)


def _bare(reader: Reader) -> Reader:
    """Its files without digests and checksums, as other programs write them: these would keep every mutation from the rest."""

    def write(folder: Path) -> None:
        reader.write(folder)
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                _without_checksums(path)
            elif path.name.endswith(".json.gz"):
                path.write_bytes(gzip.compress(_DIGEST.sub(b"", gzip.decompress(path.read_bytes())), mtime=0))
            elif path.suffix in (".json", ".graphml"):
                path.write_bytes(_DIGEST.sub(b"", path.read_bytes()))

    return replace(reader, write=write)


_DIGEST = re.compile(
    rb'\s*<data key="d\d+">sha256:[0-9a-f]+</data>|,\s*"(graph_)?digest": ?"[^"]*"|"digest": ?"[^"]*",'
)


def _without_checksums(path: Path) -> None:
    file = open_tensor_file(path)
    kept = dict(file.metadata)
    if HEADER_KEY in kept:  # only files of the first version may lack them
        kept[HEADER_KEY] = kept[HEADER_KEY].replace(f'"version": {VERSION}', '"version": 1', 1)
    save_file({name: file.read(name) for name in file.entries}, path, kept)


READERS: tuple[Reader, ...] = (
    _bare(_graph("graph.safetensors")),
    _graph("graph.pt", sealed=True),
    _bare(_graph("graph.graphml")),
    _bare(_graph("graph.json")),
    _bare(Reader("viewer JSON", _write_viewed, lambda folder: _viewed(folder / "small.json"))),
    _bare(Reader("viewer JSON, packed", _write_packed, lambda folder: _viewed(folder / "small.json.gz"), sealed=True)),
    _bare(Reader("graph index", _write_index, _index)),
    _bare(Reader("transcoders", lambda folder: _write_native("transcoder_set", folder), _dictionary)),
    _bare(
        Reader("cross-layer transcoder", lambda folder: _write_native("cross_layer_transcoder", folder), _dictionary)
    ),
    Reader("npz", lambda folder: _write_npz(folder, pack=False), _dictionary),
    Reader("npz, packed", lambda folder: _write_npz(folder, pack=True), _dictionary, sealed=True),
    Reader("sparsify", _write_sparsify, _dictionary),
    Reader("SAELens", _write_saelens, _dictionary),
    Reader("autoencoders", _write_autoencoders, _autoencoders),
    _published("clt-training"),
    _published("clt-training-cross-layer"),
    _published("open-moss"),
    _published("clt-forge"),
    _published("crosslayer-coding"),
    Reader("features", _write_features, _features),
    _bare(Reader("labels", _write_labels, load_labels)),
    _bare(Reader("heads", _write_heads, lambda folder: read_head_table(folder / "heads.json").model_dump())),
    Reader("fetched labels", _write_fetched, lambda folder: neuronpedia_labels._read(folder / "0-set.json")),
    Reader("answers", _write_answers, _answer),
    Reader("features, unfinished", _write_build, _build),
    Reader("checkpoint", _write_checkpoint, _checkpoint),
    Reader("training log", _write_log, _log),
    Reader("training configuration", _write_config, lambda folder: load(folder / "run.yaml")),
    Reader("training cache", _write_cache, _cached, slow=True),
    Reader("position in data", _write_position, _position, slow=True),
    Reader("parquet", _write_parquet, lambda folder: _documents(ParquetFiles(str(folder), "text"))),
    Reader("JSON lines", _write_lines, lambda folder: _documents(JsonLines(str(folder), "text"))),
    Reader("packed JSON lines", _write_packed_lines, lambda folder: _documents(JsonLines(str(folder), "text"))),
    Reader("given activations", _write_rows, _rows),
    Reader("message of activations", _write_message, _message),
    Reader("text", _write_text, lambda folder: _documents(TextFiles(str(folder)))),
    Reader("token arrays", _write_array, lambda folder: _documents(TokenFiles(str(folder), 5))),
    Reader("token tensors", _write_tensor, lambda folder: _documents(TokenFiles(str(folder), 5))),
    Reader("direction", _write_direction, lambda folder: _vector(folder / "v.safetensors")),
    Reader("conversation", _write_conversation, lambda folder: read_jobs(str(folder / "chat.json"), None, True, "x")),
    Reader("answer of a server", _write_http, _http),
)


def digest(value: Any) -> Any:
    """Values that can be compared: tensors as bytes, everything else by its parts. NaN equals NaN."""
    match value:
        case torch.Tensor():
            return (
                str(value.dtype),
                tuple(value.shape),
                value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(),
            )
        case np.ndarray():
            return (str(value.dtype), value.shape, value.tobytes())
        case dict():
            return tuple((repr(name), digest(each)) for name, each in value.items())
        case list() | tuple():
            return tuple(digest(each) for each in value)
        case Graph():
            parts = (value.edges, value.targets, value.balance, value.reconstruction, value.validation, value.cfg,
                     value.edge_heads)  # fmt: skip
            named = ("input_string", "input_tokens", "active_features", "selected_features", "activation_values", "scan",
                     "logit_targets", "logit_probabilities", "vocab_size", "token_strings", "provenance")  # fmt: skip
            return digest([*parts, *(getattr(value, name) for name in named)])
        case _ if hasattr(value, "__dataclass_fields__"):
            return tuple((field.name, digest(getattr(value, field.name))) for field in fields(value))
        case _:
            return repr(value)
