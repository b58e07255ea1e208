"""circuit-tracer's graph files (``.pt``): a torch pickle of a dict. Read without running code; written as it writes them.

Dialects read: ``logit_targets`` as LogitTarget records, as plain pairs (ours, before) or as a tensor of ids;
``logit_tokens`` instead of it (v0.2-0.3.1); ``scan_name`` for ``scan`` (v0.5.1+); ``cfg`` as UnifiedConfig, as a
configuration of TransformerLens in any of its versions, or as a plain dict (ours, before).

Written is what both circuit-tracers called 0.5 read, and later ones: their keys, tensors, plain values, and the two
records that their ``Graph`` needs, named as they name them. ``torch.load(path, weights_only=True)`` reads the file
too, wherever this module was imported: both records are plain data, and are declared safe here.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, shortened
from circuit_tracer.files import atomic_write
from circuit_tracer.files.torch_archive import load_torch_archive
from circuit_tracer.graph.config import GraphConfig
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.targets import LogitTarget

_REQUIRED = {
    "input_string",
    "input_tokens",
    "adjacency_matrix",
    "active_features",
    "activation_values",
    "selected_features",
    "logit_probabilities",
    "cfg",
}
_OPTIONAL = {"logit_targets", "logit_tokens", "vocab_size", "scan", "scan_name"}


# circuit-tracer's names of the records in its files, and what they are here.
_RECORDS: dict[str, type] = {
    "circuit_tracer.attribution.targets.LogitTarget": LogitTarget,
    "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig": GraphConfig,
}
torch.serialization.add_safe_globals([(cls, name) for name, cls in _RECORDS.items()])


class _Settings:
    """Stands in for a configuration class of another library: takes its attributes, has none of its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Ignored:
    """Stands in for a numpy scalar among the fields of a configuration; no such field is used."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# What else may be named in a file, besides tensors, and what is built in its place. Module paths of TransformerLens
# change with its versions; files of circuit-tracer's nnsight side may hold a configuration of transformers.
_STAND_INS: list[tuple[re.Pattern[str], type]] = [
    (re.compile(r"circuit_tracer\.graph\.targets\.LogitTarget"), LogitTarget),
    (re.compile(r"circuit_tracer\.graph\.config\.GraphConfig"), GraphConfig),
    (re.compile(r"(transformer_lens|transformers)(\.\w+)*\.\w+Config"), _Settings),
    (re.compile(r"numpy\._?core\.multiarray\.scalar|numpy\.dtype(s\.\w+)?"), _Ignored),
]


def load_pt(path: str | Path, map_location: str | torch.device = "cpu") -> Graph:
    """Read a graph of any version of circuit-tracer, or one written by ``save_pt``.

    Only tensors, plain values and the records named above are accepted; nothing in the file is executed.

    Args:
        path: The file.
        map_location: Where its tensors go.

    Returns:
        The graph.

    Raises:
        InputError: If there is no such file.
        FileFormatError: If it is no such graph or names anything else.
    """
    path = Path(path)
    content = load_torch_archive(path, _STAND_INS, map_location)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, expected a dict with circuit-tracer's keys")
    missing = sorted(_REQUIRED - set(content))
    unknown = sorted(
        str(key) if type(key) is str else shortened(key) for key in content if key not in _REQUIRED | _OPTIONAL
    )
    if missing or unknown:
        complaint = f"lacks {', '.join(missing)}" if missing else f"has unknown keys {', '.join(unknown)}"
        raise FileFormatError(f"{path} {complaint}; it is no graph that circuit-tracer wrote")
    try:
        return Graph(
            input_string=content["input_string"],
            input_tokens=content["input_tokens"],
            active_features=content["active_features"],
            adjacency_matrix=Edges.from_dense(content["adjacency_matrix"]),
            cfg=content["cfg"],
            selected_features=content["selected_features"],
            activation_values=content["activation_values"],
            logit_targets=_targets(content),
            logit_probabilities=content["logit_probabilities"],
            scan=content.get("scan", content.get("scan_name")),
            vocab_size=content.get("vocab_size"),
        )
    except (CircuitTracerError, TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise FileFormatError(f"{path} does not hold a consistent graph: {error}") from error


def save_pt(graph: Graph, path: str | Path) -> None:
    """Write a file that circuit-tracer reads.

    The matrix is dense: N * N * 4 bytes. Balance, target table, token strings and provenance have no place in this format;
    ``Graph.save`` keeps them.

    Args:
        graph: The attribution graph.
        path: The file.

    Raises:
        InputError: For a graph with errors of attention, which has none either.
    """
    if graph.attention:
        raise InputError(
            "circuit-tracer's files have no place for features and errors of attention; save this graph as .safetensors or JSON"
        )
    content = {
        "input_string": graph.input_string,
        "adjacency_matrix": graph.edges.to_dense().float(),
        "cfg": graph.cfg,
        "active_features": graph.active_features,
        "logit_targets": graph.logit_targets,
        "logit_probabilities": graph.logit_probabilities,
        "vocab_size": graph.vocab_size,
        "input_tokens": graph.input_tokens,
        "selected_features": graph.selected_features,
        "activation_values": graph.activation_values,
        "scan": graph.scan,
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file, pickle_module=_NAMED_AS_THEIRS)
        except RuntimeError as error:
            # torch's zip writer reports a full disk as a RuntimeError.
            raise OSError(str(error)) from error


_PythonPickler: Any = vars(pickle)["_Pickler"]  # the one whose steps can be overridden


def _save_global(pickler: Any, obj: Any, name: str | None = None) -> None:
    theirs = next((theirs for theirs, cls in _RECORDS.items() if cls is obj), None)
    if theirs is None:
        _PythonPickler.save_global(pickler, obj, name)
        return
    module, _, qualified = theirs.rpartition(".")
    pickler.write(pickle.GLOBAL + f"{module}\n{qualified}\n".encode())
    pickler.memoize(obj)


# What torch.save takes as the pickle module: classes are named as circuit-tracer names them.
_NAMED_AS_THEIRS = type("pickle", (), {"Pickler": type("Pickler", (_PythonPickler,), {"save_global": _save_global})})


def _targets(content: dict[str, Any]) -> list[LogitTarget]:
    stored = content.get("logit_targets", content.get("logit_tokens"))
    if stored is None:
        raise FileFormatError("there are neither logit_targets nor logit_tokens")
    return LogitTarget.list_of(stored)
