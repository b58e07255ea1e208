from __future__ import annotations

import json
import os
import re
import resource
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from circuit_tracer.errors import FileFormatError, InputError, ResourceError
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.graph import Graph, LogitTarget, TargetTable, prune_graph
from circuit_tracer.graph.files import native
from circuit_tracer.graph.files.networkx import from_networkx, to_networkx
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.graph.validation import ValidationReport
from tests.support.graph_cases import graphs, random_graph, random_validation, same_edges

COLUMNS = ("label", "kind", "layer", "position", "weight", "token_id")


def assert_same_graph(a: Graph, b: Graph, *, whole: bool = True) -> None:
    assert same_edges(a.edges, b.edges)
    assert (a.input_string, a.cfg, a.scan, a.vocab_size) == (b.input_string, b.cfg, b.scan, b.vocab_size)
    assert a.logit_targets == b.logit_targets
    names = ["input_tokens", "active_features", "selected_features", "activation_values", "logit_probabilities"]
    for name in names:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert getattr(a, name).dtype == getattr(b, name).dtype
    if whole:
        assert (a.token_strings, a.provenance) == (b.token_strings, b.provenance)
        for part in (a.balance, a.reconstruction, a.targets):
            other = next(p for p in (b.balance, b.reconstruction, b.targets) if type(p) is type(part))
            for name, value in vars(part).items():
                theirs = getattr(other, name)
                assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs


@given(graph=graphs())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_native_file_gives_everything_back(graph: Graph, tmp_path: Path) -> None:
    path = graph.save(tmp_path / "g.safetensors")
    assert_same_graph(Graph.load(path), graph)


def test_native_file_keeps_what_validation_found(tmp_path: Path) -> None:
    graph = random_graph()
    graph.validation = random_validation()
    loaded = Graph.load(graph.save(tmp_path / "g.safetensors"))
    assert loaded.validation == graph.validation
    assert loaded.validation is not None
    loaded.adjacency_matrix = 2 * loaded.adjacency_matrix
    assert loaded.validation is None
    path = create_graph_files(graph, "tested", tmp_path)
    assert json.loads(path.read_text())["metadata"]["validation"] == graph.validation.summary()
    for damage, expected in ({"version": 2}, "version 2"), ({"seconds": "soon"}, "seconds"), ({"graph": 1}, "graph"):
        values = {**graph.validation.to_json(), **damage}
        with pytest.raises(FileFormatError, match=expected):
            ValidationReport.from_json(values)


def test_native_file_without_optional_parts(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    graph.balance = graph.reconstruction = graph.token_strings = None
    graph.scan = ["a", "b", "c"]
    path = graph.save(tmp_path / "g")
    loaded = Graph.load(path)
    assert loaded.balance is None
    assert loaded.residual is None
    assert loaded.scan == ["a", "b", "c"]


def rewrite_header(path: Path, change: dict[str, Any]) -> None:
    """The file as a program would write it that means this header."""
    file = open_tensor_file(path)
    header = json.loads(file.metadata[native.HEADER_KEY]) | change
    write_tensors(path, {name: file.read(name) for name in file.entries}, {native.HEADER_KEY: json.dumps(header)})


def test_damaged_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = random_graph().save(tmp_path / "g")
    whole = path.read_bytes()
    with pytest.raises(InputError, match="no graph file"):
        Graph.load(tmp_path / "absent")
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileFormatError, match="cut short"):
            Graph.load(path)
    for change, message in (
        ({"version": 99}, "Update"),
        ({"version": "1"}, "version"),
        ({"cfg": {"n_layers": 9}}, "consistent"),
        ({"logit_targets": None}, "consistent"),
    ):
        path.write_bytes(whole)
        rewrite_header(path, change)
        with pytest.raises(FileFormatError, match=message):
            Graph.load(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "plain")
    with pytest.raises(FileFormatError, match="no graph of this project"):
        Graph.load(tmp_path / "plain")
    del tensors["edges.source"]
    save_file(tensors, tmp_path / "partial", {native.HEADER_KEY: json.dumps({"version": 1})})
    with pytest.raises(FileFormatError, match=r"edges\.source"):
        Graph.load(tmp_path / "partial")


def test_provenance_must_be_json(tmp_path: Path) -> None:
    graph = random_graph()
    graph.provenance["when"] = object()
    with pytest.raises(InputError, match="JSON"):
        graph.save(tmp_path / "g")


@contextmanager
def small_disk(n_bytes: int) -> Iterator[None]:
    """Writes beyond ``n_bytes`` fail as on a full disk (the limit of the process, with its signal ignored)."""
    import signal

    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, old_signal)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("kind", ["native", "pt", "json"])
def test_a_full_disk_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    graph = random_graph(n_active=60, n_selected=60, n_layers=5)
    names = {"native": "g", "pt": "g.pt", "json": "g.json"}
    write = {
        "native": lambda: graph.save(tmp_path / "g"),
        "pt": lambda: graph.to_pt(tmp_path / "g.pt"),
        "json": lambda: graph.to_json("g", tmp_path, node_threshold=1.0, edge_threshold=1.0),
    }[kind]
    write()
    path = tmp_path / names[kind]
    before, files = path.read_bytes(), sorted(os.listdir(tmp_path))
    with small_disk(len(before) // 2), pytest.raises(ResourceError, match="unchanged"):
        write()
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == files


# circuit-tracer's .pt


@dataclass
class UnifiedConfig:
    n_layers: int = 3
    d_model: int = 16
    d_vocab: int = 90
    model_name: str = "some/model"
    dtype: Any = torch.float32


class HookedTransformerConfig:
    def __init__(self) -> None:
        self.n_layers, self.d_vocab, self.dtype, self.device = 3, 90, torch.bfloat16, "cpu"
        self.initializer_range = np.float64(0.2)


class TheirTarget(NamedTuple):
    token_str: str
    vocab_idx: int


class LlamaConfig:
    def __init__(self) -> None:
        self.num_hidden_layers, self.vocab_size, self.name_or_path, self.torch_dtype = (
            3,
            90,
            "some/model",
            torch.bfloat16,
        )


TheirTarget.__qualname__ = TheirTarget.__name__ = "LogitTarget"
FOREIGN = {
    "circuit_tracer.attribution.targets": TheirTarget,
    "circuit_tracer.utils.tl_nnsight_mapping": UnifiedConfig,
    "transformer_lens.HookedTransformerConfig": HookedTransformerConfig,
    "transformers.models.llama.configuration_llama": LlamaConfig,
}


@contextmanager
def foreign_classes(**moved: str) -> Iterator[None]:
    """The classes above under the module names of other libraries, so that pickles name them as theirs do."""
    with pytest.MonkeyPatch.context() as patch:
        for usual, cls in FOREIGN.items():
            module_name = moved.get(cls.__name__, usual)
            parts = module_name.split(".")
            for depth in range(1, len(parts) + 1):
                name = ".".join(parts[:depth])
                if name not in sys.modules or depth == len(parts):
                    patch.setitem(sys.modules, name, types.ModuleType(name))
            setattr(sys.modules[module_name], cls.__name__, cls)
            patch.setattr(cls, "__module__", module_name)
        yield


def old_content(graph: Graph) -> dict[str, Any]:
    return {
        "input_string": graph.input_string,
        "adjacency_matrix": graph.adjacency_matrix,
        "cfg": UnifiedConfig(),
        "active_features": graph.active_features,
        "logit_targets": graph.logit_targets,
        "logit_probabilities": graph.logit_probabilities,
        "vocab_size": graph.vocab_size,
        "input_tokens": graph.input_tokens,
        "selected_features": graph.selected_features,
        "activation_values": graph.activation_values,
        "scan": graph.scan,
    }


@pytest.mark.parametrize("dialect", ["0.5", "0.5.1", "0.4-tensor", "0.3-tokens", "transformer-lens", "module-name"])
def test_every_dialect_of_pt_is_read(dialect: str, tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    content = old_content(graph)
    if dialect == "0.5.1":
        content["scan_name"] = content.pop("scan")
    if dialect == "0.4-tensor":
        content["logit_targets"] = graph.logit_token_ids
    if dialect == "0.3-tokens":
        content["logit_tokens"] = graph.logit_token_ids
        del content["logit_targets"], content["vocab_size"]
    if dialect == "transformer-lens":
        content["cfg"] = HookedTransformerConfig()
    with foreign_classes():
        if dialect == "module-name":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LogitTarget, "__module__", "circuit_tracer.attribution.targets")
                module = types.ModuleType("circuit_tracer.attribution.targets")
                module.LogitTarget = LogitTarget  # type: ignore[attr-defined]
                patch.setitem(sys.modules, "circuit_tracer.attribution.targets", module)
                torch.save(content, tmp_path / "g.pt")
        else:
            torch.save(content, tmp_path / "g.pt")
    loaded = Graph.from_pt(tmp_path / "g.pt")
    assert same_edges(loaded.edges, graph.edges)
    assert loaded.logit_token_ids.tolist() == [0, 7, 14]
    assert (loaded.n_layers, loaded.vocab_size, loaded.scan) == (3, 90, "some/transcoders")
    assert loaded.cfg.dtype == ("bfloat16" if dialect == "transformer-lens" else "float32")
    has_text = dialect not in ("0.4-tensor", "0.3-tokens")
    assert loaded.logit_targets[0].token_str == (graph.logit_targets[0].token_str if has_text else "")


@pytest.mark.parametrize(
    "module", ["HookedTransformerConfig", "config.HookedTransformerConfig", "config.hooked_transformer_config", "a.b.c"]
)
def test_configurations_of_any_transformer_lens_are_read(module: str, tmp_path: Path) -> None:
    """They are in another module in versions 1 and 2, 3.0, and from 3.4 on."""
    graph = random_graph(dtype=torch.float32)
    with foreign_classes(HookedTransformerConfig=f"transformer_lens.{module}"):
        torch.save(old_content(graph) | {"cfg": HookedTransformerConfig()}, tmp_path / "g.pt")
    loaded = Graph.from_pt(tmp_path / "g.pt")
    assert (loaded.n_layers, loaded.cfg.d_vocab, loaded.cfg.dtype) == (3, 90, "bfloat16")


def test_configurations_of_transformers_are_read(tmp_path: Path) -> None:
    with foreign_classes():
        torch.save(old_content(random_graph(dtype=torch.float32)) | {"cfg": LlamaConfig()}, tmp_path / "g.pt")
    loaded = Graph.from_pt(tmp_path / "g.pt")
    assert (loaded.n_layers, loaded.cfg.d_vocab, loaded.cfg.tokenizer_name) == (3, 90, "some/model")


@pytest.mark.parametrize("name", ["hook_points.HookPoint", "config.run", "utils.Config.run"])
def test_nothing_else_of_transformer_lens_is_built(name: str, tmp_path: Path) -> None:
    module, _, called = f"transformer_lens.{name}".rpartition(".")
    cls = type(called, (HookedTransformerConfig,), {})
    with pytest.MonkeyPatch.context() as patch, foreign_classes():
        patch.setattr(cls, "__module__", module)
        holder = types.ModuleType(module)
        setattr(holder, called, cls)
        patch.setitem(sys.modules, module, holder)
        torch.save(old_content(random_graph()) | {"cfg": cls()}, tmp_path / "g.pt")
    with pytest.raises(FileFormatError, match=re.escape(f"{module}.{called}")):
        Graph.from_pt(tmp_path / "g.pt")


def test_circuit_tracers_classes_are_built_from_own_pt(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    graph.to_pt(tmp_path / "g.pt")
    with foreign_classes():
        content = torch.load(tmp_path / "g.pt", weights_only=False)
    assert type(content["cfg"]) is UnifiedConfig
    assert (content["cfg"].n_layers, content["cfg"].model_name, content["cfg"].tokenizer_name) == (
        3,
        "some/model",
        None,
    )
    assert type(content["logit_targets"][0]) is TheirTarget
    assert content["logit_targets"][0].token_str == graph.logit_targets[0].token_str


def test_own_pt_holds_plain_values_only(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    graph.to_pt(tmp_path / "g.pt")
    content = torch.load(tmp_path / "g.pt", weights_only=True)
    assert set(content) == set(old_content(graph))
    assert content["cfg"]["n_layers"] == 3
    assert content["logit_targets"] == [tuple(target) for target in graph.logit_targets]
    assert torch.equal(content["adjacency_matrix"], graph.adjacency_matrix)
    assert_same_graph(Graph.from_pt(tmp_path / "g.pt"), graph, whole=False)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pt_file_is_not_run(tmp_path: Path) -> None:
    content = old_content(random_graph()) | {"cfg": Attack(tmp_path / "owned")}
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(FileFormatError, match=r"mkdir"):
        Graph.from_pt(tmp_path / "g.pt")
    assert not (tmp_path / "owned").exists()


def test_other_pt_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.pt"
    random_graph().to_pt(path)
    whole = path.read_bytes()
    for data, message in ((whole[: len(whole) // 2], "cut short"), (b"", "no torch file"), (b"junk", "no torch file")):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=message):
            Graph.from_pt(path)
    content = {"a": 1}
    torch.save(content, path)
    with pytest.raises(FileFormatError, match="lacks activation_values"):
        Graph.from_pt(path)
    path.write_bytes(whole)
    torch.save(torch.load(path, weights_only=True) | {"extra": 1}, path)
    with pytest.raises(FileFormatError, match="unknown keys extra"):
        Graph.from_pt(path)
    with pytest.raises(InputError, match="no such file"):
        Graph.from_pt(tmp_path / "absent.pt")


# networkx


def test_networkx_and_back() -> None:
    graph = random_graph(dtype=torch.float32)
    back = from_networkx(to_networkx(graph))
    assert same_edges(back.edges, graph.edges)
    assert torch.equal(back.active_features, graph.active_features[graph.selected_features])
    assert back.token_strings == graph.token_strings
    assert back.provenance == graph.provenance
    assert all(getattr(back.targets, name) == getattr(graph.targets, name) for name in ("label", "kind"))
    assert back.residual == pytest.approx(graph.residual, abs=1e-6)


def test_networkx_can_be_written(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    directed = graph.to_networkx()
    nx.write_graphml(directed, tmp_path / "g.graphml")
    assert same_edges(from_networkx(nx.read_graphml(tmp_path / "g.graphml")).edges, graph.edges)
    text = json.dumps(nx.node_link_data(directed, edges="edges"))
    assert same_edges(from_networkx(nx.node_link_graph(json.loads(text), edges="edges")).edges, graph.edges)


def test_networkx_of_a_pruned_graph() -> None:
    graph = random_graph(dtype=torch.float32)
    pruned = prune_graph(graph, 0.5, 0.9)
    directed = to_networkx(graph, pruned)
    assert directed.number_of_nodes() == int(pruned.node_mask.sum())
    assert directed.number_of_edges() == int(pruned.kept_edges.sum())
    back = from_networkx(directed)
    torch.testing.assert_close(back.edges.weight, pruned.pruned_edges.weight)
    with pytest.raises(FileFormatError, match="to_networkx"):
        from_networkx(nx.DiGraph())
    graph.targets = TargetTable.from_logits([graph.logit_targets[0]] * 3, graph.logit_probabilities, 3, 4, 90)
    del graph.__dict__["nodes"]
    with pytest.raises(InputError, match="same id"):
        to_networkx(graph)
