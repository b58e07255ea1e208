"""Every kind of file that this package writes and reads again: how a small one is made, and all that reading it gives.

What a reading gives is plain values, tensors and arrays, so that two readings can be compared to the bit.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.build_folder import BuildFolder
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.labels import Label, load_labels, write_labels
from circuit_tracer.features.neuronpedia_labels import _add as write_fetched
from circuit_tracer.features.neuronpedia_labels import _read as read_fetched
from circuit_tracer.features.segment import Segment, Window
from circuit_tracer.features.summary import Keep
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.formats import read_graph, write_graph
from circuit_tracer.graph.files.graph_index import read_index
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.log import JsonLog
from circuit_tracer.transcoders import Transcoders, load_transcoder_from_hub
from circuit_tracer.transcoders.loading import save_transcoders
from tests.support import data_cases, feature_cases
from tests.support.dictionaries import random_clt, random_set
from tests.support.graph_cases import random_edge_heads, random_graph
from tests.support.loop_cases import Run, tensors

_CHAT = [{"role": "user", "content": "Name it: «Dallas», «Houston»."}]


@dataclass(frozen=True)
class Written:
    """make: writes the files into an empty folder. read: all that is read of them. files: patterns of those to damage."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    files: tuple[str, ...]

    def paths(self, folder: Path) -> list[Path]:
        """The files to damage."""
        return sorted(path for pattern in self.files for path in folder.glob(pattern))


def equal(one: Any, other: Any) -> bool:
    """Whether two readings are the same, to the bit."""
    if type(one) is not type(other):
        return False
    match one:
        case Tensor():
            return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
        case np.ndarray():
            return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        case dict():
            return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
        case list() | tuple():
            return len(one) == len(other) and all(map(equal, one, other))
        case _ if is_dataclass(one):
            return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
        case _:
            return bool(one == other)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# ---- graphs


def _graph() -> Graph:
    graph = random_graph(dtype=torch.float32)
    graph.edge_heads = random_edge_heads(graph)
    return graph


def _parts(graph: Graph) -> dict[str, Any]:
    names = (
        "input_string", "input_tokens", "active_features", "selected_features", "activation_values", "logit_targets",
        "logit_probabilities", "scan", "vocab_size", "cfg", "edges", "targets", "balance", "token_strings", "provenance",
        "reconstruction", "validation", "edge_heads",
    )  # fmt: skip
    return {name: getattr(graph, name) for name in names}


def _graph_file(name: str) -> Written:
    return Written(
        lambda folder: write_graph(_graph(), folder / name), lambda folder: _parts(read_graph(folder / name)), (name,)
    )


def _viewer_files(folder: Path) -> None:
    create_graph_files(_graph(), "g", folder, labels={(0, 1): "seven"})
    create_graph_files(_graph(), "h", folder)
    (folder / "h.json.gz").write_bytes(gzip.compress((folder / "h.json").read_bytes(), mtime=0))


# ---- dictionaries


def _dictionary(transcoders: Transcoders) -> Any:
    layers = [
        (
            transcoders.encoder(layer).rows(torch.arange(transcoders.n_features(layer))),
            transcoders.decoder(layer).whole(),
            transcoders.encoder_bias(layer),
            transcoders.decoder_bias(layer),
            transcoders.skip_matrix(layer),
            getattr(transcoders.activation(layer), "threshold", None),
            repr(transcoders.activation(layer)),
        )
        for layer in range(transcoders.n_layers)
    ]
    return layers, type(transcoders).__name__


def _read_dictionary(lazy: bool) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        place: dict[str, Any] = {"device": "cpu", "dtype": None, "lazy_encoder": lazy, "lazy_decoder": lazy}
        transcoders, config = load_transcoder_from_hub(folder, **place)
        return _dictionary(transcoders), config

    return read


def _save(transcoders: Callable[[], Transcoders]) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        save_transcoders(transcoders(), folder, "org/model")

    return save


# ---- features


def _features(folder: Path) -> None:
    feature_cases.Case().build(folder, "made")
    write_labels(folder / "made", {(0, 3): Label("three “é”", "record"), (1, 4): Label("four", "openai:m", 0.75)})


def _read_features(folder: Path) -> Any:
    features = FeatureFolder(folder / "made")
    return features.manifest, [(place, features.get(place)) for place in features], load_labels(folder / "made")


_BUILD = {"documents": "some", "tokens": 5}
_KEEP = Keep(2, 3)


def _build(folder: Path) -> None:
    build, draw = BuildFolder(folder / "build", _BUILD, 2, _KEEP), np.random.default_rng(0)
    for stretch in range(3):
        segment = Segment(2, 20 * stretch)
        token = np.arange(20).repeat(2)
        active = [(token, draw.integers(0, 7, 40), draw.random(40, np.float32)) for _ in range(2)]
        unique = [np.unique(np.stack([t, f]), axis=1, return_index=True)[1] for t, f, _ in active]
        entries = [tuple(column[keep] for column in entry) for entry, keep in zip(active, unique, strict=True)]
        segment.add([draw.integers(0, 9, 20)], entries)  # type: ignore[arg-type]
        behind = {**build.progress, "tokens": 20 * (stretch + 1), "counted": 19 * (stretch + 1), "corpus": [stretch]}
        build.add(segment.summaries(Window(2, 1), _KEEP), behind)


def _read_build(folder: Path) -> Any:
    build = BuildFolder(folder / "build", _BUILD, 2, _KEEP)
    spans = [build._load(layer, span) for layer in range(2) for span in build._spans(layer)]
    return build.progress, spans


class _Answering(ChatModel):
    def _ask(self, messages: Any, tokens: int) -> str:
        return "Cities of Texas – 10 of them"


def _ask(folder: Path) -> str:
    return _Answering("model", "http://localhost", folder).ask(_CHAT, 60)


# ---- training

_RUN = Run("skip", "jumprelu")
_FACTS = {"config": {"run.seed": 5}, "model": {"n_layers": 3}, "data": {"row": 7}}


def _checkpoint(folder: Path) -> None:
    loop = _RUN.loop(Path("unused"))
    for _ in range(2):
        loop._step()
    checkpoint.save(loop.state, folder, _FACTS, FeatureRanks())


def _read_checkpoint(folder: Path) -> Any:
    found, state = checkpoint.read(checkpoint.path_of(folder, 2)), _RUN.state()
    checkpoint.load_(state, found)
    return tensors(state), state.step, state.running_cut, found.content


def _cache(folder: Path) -> None:
    data_cases.write_jsonl(folder / "data.jsonl", data_cases.texts(12))
    list(data_cases.batches(data_cases.stream(_cached(folder))))


def _cached(folder: Path) -> Any:
    return data_cases.config(folder, data__cache=folder / "cache", data__buffer_tokens=16)


def _read_cache(folder: Path) -> Any:
    """Of a cache that reading has gone beyond, the shards behind are made anew: that is no damage."""
    return [data_cases.tensors(batch) for batch in data_cases.batches(data_cases.stream(_cached(folder)))]


def _log(folder: Path) -> None:
    with JsonLog(folder / "log.jsonl") as log:
        for step in range(1, 4):
            log._append({"step": step, "loss": 1 / step, "nmse_S": [0.5, 0.25 / step]})
            log.evaluated({"nmse": step / 7})


def _read_log(folder: Path) -> str:
    with JsonLog(folder / "log.jsonl", 3):
        return (folder / "log.jsonl").read_text()


WRITTEN: dict[str, Written] = {
    "native graph": _graph_file("g.safetensors"),
    ".pt graph": _graph_file("g.pt"),
    "node-link graph": _graph_file("g.json"),
    "GraphML graph": _graph_file("g.graphml"),
    "viewer JSON": Written(_viewer_files, lambda folder: load_viewer_json(folder / "g.json"), ("g.json",)),
    "viewer JSON, gzipped": Written(
        _viewer_files, lambda folder: load_viewer_json(folder / "h.json.gz"), ("h.json.gz",)
    ),
    "index of graphs": Written(_viewer_files, read_index, ("graph-metadata.json",)),
    "cross-layer transcoder": Written(
        _save(lambda: random_clt("jump_relu", skip=True)),
        _read_dictionary(lazy=False),
        ("*.safetensors", "config.yaml"),
    ),
    "cross-layer transcoder, rows from disk": Written(
        _save(lambda: random_clt("topk_nonnegative")), _read_dictionary(lazy=True), ("*.safetensors", "config.yaml")
    ),
    "per-layer transcoders": Written(
        _save(lambda: random_set("topk", skip=True)), _read_dictionary(lazy=True), ("*.safetensors", "config.yaml")
    ),
    "features": Written(_features, _read_features, ("made/*",)),
    "features, unfinished": Written(_build, _read_build, ("build/*.json", "build/*/*.safetensors")),
    "answer of an interpreting model": Written(_ask, _ask, ("*/*.json",)),
    "labels fetched": Written(
        lambda folder: write_fetched(folder / "0-set.json", {1: "one", 7: None}),
        lambda folder: read_fetched(folder / "0-set.json"),
        ("0-set.json",),
    ),
    "checkpoint": Written(_checkpoint, _read_checkpoint, ("step-*/*",)),
    "activation cache": Written(_cache, _read_cache, ("cache/*",)),
    "log of a run": Written(_log, _read_log, ("log.jsonl",)),
}
