"""The project's own graph file: tensors in safetensors, the rest in a versioned JSON header. Nothing runs on load.

Header, under the safetensors metadata key ``circuit_tracer_graph``: {"version": 2, "input_string", "cfg", "scan",
"vocab_size", "logit_targets": [[text, id]...], "target_labels", "target_kinds", "token_strings", "provenance"}, and
"parts" of its dictionary if it has several, "labels" of features if it keeps any (the tensors ``records.*`` are of their
examples, `feature_notes.py`), "validation" if the graph was validated, "grouping" if its nodes are grouped, "story" if one was
told of them, "attention_scores" if it keeps any, "unfinished" if its trace was interrupted (the tensors ``unfinished.*`` are
its rows).
Tensors: see ``_TENSORS`` and the optional groups. Edge sources are int32 on disk when the node ids fit. From version 2 on,
header and tensors have checksums (`circuit_tracer.files.checksums`), which are compared on load.
"""

from __future__ import annotations

import json
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, NumericalError, shortened
from circuit_tracer.files import atomic_write, open_file, parse_json
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.graph.attention_scores import AttentionScore
from circuit_tracer.graph.balance import Reconstruction, RowBalance
from circuit_tracer.graph.dictionary_parts import DEFAULT
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.feature_notes import (
    labels_from_json,
    labels_to_json,
    records_from_tensors,
    records_to_tensors,
)
from circuit_tracer.graph.files.pt import load_pt
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.targets import LogitTarget, TargetTable
from circuit_tracer.graph.unfinished import Unfinished
from circuit_tracer.graph.validation import ValidationReport

_UNFINISHED = "unfinished."
HEADER_KEY = "circuit_tracer_graph"
VERSION = 2
_WITH_CHECKSUMS = 2  # the first version that has them
_TENSORS = (
    "input_tokens",
    "active_features",
    "selected_features",
    "activation_values",
    "logit_probabilities",
    "edges.row_ptr",
    "edges.source",
    "edges.weight",
    "targets.layer",
    "targets.position",
    "targets.weight",
    "targets.token_id",
)
_BALANCE = tuple(f"balance.{field.name}" for field in fields(RowBalance))
_EDGE_HEADS = tuple(f"edge_heads.{field.name}" for field in fields(EdgeHeads))
_READS = tuple(f"targets.reads.{field.name}" for field in fields(StreamReads))
_RECONSTRUCTION = tuple(f"reconstruction.{field.name}" for field in fields(Reconstruction))


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph; ``load_graph`` gives all of it back, bit for bit.

    Args:
        graph: The attribution graph.
        path: The file, usually `.safetensors`.

    Returns:
        The path.

    Raises:
        InputError: If the provenance holds anything but JSON values.
        ResourceError: If the disk is full (an older file of that name stays as it was).
    """
    header = _header(graph)
    tensors = {name: _tensor_of(graph, name) for name in _names_of(graph)}
    if graph.n_nodes < 2**31:
        tensors["edges.source"] = tensors["edges.source"].int()
    tensors |= records_to_tensors(graph.records)
    if graph.unfinished is not None:
        tensors |= {f"{_UNFINISHED}{name}": tensor for name, tensor in graph.unfinished.tensors.items()}
    with atomic_write(path) as temporary:
        write_tensors(temporary, tensors, {HEADER_KEY: header}, Path(path).name)
    return Path(path)


def load_graph(path: str | Path, max_residual: float | None = None) -> Graph:
    """Read a graph onto the CPU.

    Args:
        path: The file.
        max_residual: The largest residual of the sum rule that is let through, if larger than what is promised
            (`Graph.require_balance`).

    Returns:
        The graph, on the CPU.

    Raises:
        InputError: If there is no such file.
        FileFormatError: If it is foreign, damaged, incomplete, or of a newer version than this one reads.
        NumericalError: For numbers that are not finite and for rows that do not add up.
    """
    path = Path(path)
    header, tensors, sealed = _read(path)
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise FileFormatError(
            f"{path} has graph file version {shortened(version)}; expected a number from 1 to {VERSION}"
        )
    if version > VERSION:
        raise FileFormatError(
            f"{path} has graph file version {version}; this circuit-tracing reads up to {VERSION}. Update it."
        )
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise FileFormatError(f"{path} lacks {', '.join(missing)}; the file is incomplete. Save the graph again.")
    if version >= _WITH_CHECKSUMS and not sealed:
        raise FileFormatError(f"{path} is damaged: a graph file of version {version} has checksums, and it has none")
    _require_finite(path, tensors)
    try:
        graph = _assemble(header, tensors)
    except (CircuitTracerError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"{path} does not hold a consistent graph: {error}") from error
    graph.require_balance(max_residual, f"{path} is damaged, or was changed; trace again.")
    return graph


def interrupted_trace(path: str | Path) -> bool | None:
    """Whether a file's graph is of an interrupted trace that can go on; None if it is interrupted without its rows, or no
    graph. Reads the header only.
    """
    try:
        header = parse_json(open_tensor_file(Path(path)).metadata[HEADER_KEY], str(path), halves=True)
        can_go_on, interrupted = "unfinished" in header, bool(header["provenance"].get("interrupted"))
    except (OSError, CircuitTracerError, LookupError, TypeError, AttributeError):
        return None
    return True if can_go_on else None if interrupted else False


def is_native(path: str | Path) -> bool:
    """Whether the file begins as a native graph does; reads the header only.

    Args:
        path: The file.

    Returns:
        Whether it is a native file.
    """
    try:
        with open_file(path) as file:
            size = int.from_bytes(file.read(8), "little")
            return 0 < size < 100_000_000 and HEADER_KEY.encode() in file.read(size)
    except (OSError, InputError):
        return False


def _header(graph: Graph) -> str:
    header = {
        "version": VERSION,
        "input_string": graph.input_string,
        "cfg": graph.cfg.to_dict(),
        "scan": graph.scan,
        "vocab_size": graph.vocab_size,
        "logit_targets": [list(target) for target in graph.logit_targets],
        "target_labels": graph.targets.label,
        "target_kinds": graph.targets.kind,
        "token_strings": graph.token_strings,
        "provenance": graph.provenance,
    }
    if graph.parts != DEFAULT:
        header["parts"] = [part.to_json() for part in graph.parts]
    if graph.labels:
        header["labels"] = labels_to_json(graph.labels)
    if graph.validation is not None:
        header["validation"] = graph.validation.to_json()
    if graph.grouping is not None:
        header["grouping"] = graph.grouping
    if graph.story is not None:
        header["story"] = graph.story
    if graph.scores:
        header["attention_scores"] = [score.to_dict() for score in graph.scores]
    if graph.unfinished is not None:
        header["unfinished"] = graph.unfinished.facts
    try:
        return json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the graph's provenance must hold JSON values only: {error}") from error


def _names_of(graph: Graph) -> list[str]:
    names = list(_TENSORS)
    if graph.balance is not None:
        names += _BALANCE
    if graph.reconstruction is not None:
        names += _RECONSTRUCTION
    if graph.edge_heads is not None:
        names += _EDGE_HEADS
    if graph.targets.reads is not None:
        names += _READS
    return names


def _tensor_of(graph: Graph, name: str) -> Tensor:
    tensor: Tensor = attrgetter(name)(graph)
    return tensor


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """Header, tensors, and whether they were compared with checksums."""
    if not path.is_file():
        raise InputError(f"no graph file at {path}")
    try:
        file = open_tensor_file(path)
        # copies: the file may be replaced while they are used
        tensors = {name: file.read(name) for name in file.entries}
    except FileFormatError as error:
        raise FileFormatError(
            f"{path} is no graph file, or it is damaged or cut short: {error} "
            "Graphs of circuit-tracer (.pt) are read by Graph.from_pt."
        ) from error
    if HEADER_KEY not in file.metadata:
        raise FileFormatError(
            f"{path} is a safetensors file without a {HEADER_KEY} header; it is no graph of this project"
        )
    header = parse_json(file.metadata[HEADER_KEY], f"{path}: its header", halves=True)
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: the {HEADER_KEY} header is no JSON object; the file is damaged")
    return header, tensors, file.digest is not None


def _require_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """A layer without variance has no NMSE; all else is a number."""
    for name, tensor in tensors.items():
        if name not in _RECONSTRUCTION and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NumericalError(f"{path}: {name} holds numbers that are not finite. Trace again, in float32.")


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> Graph:
    def group(names: tuple[str, ...]) -> list[Tensor] | None:
        present = [name in tensors for name in names]
        if any(present) and not all(present):
            raise FileFormatError(f"only some of {', '.join(names)} are there")
        return [tensors[name] for name in names] if all(present) else None

    balance, reconstruction = group(_BALANCE), group(_RECONSTRUCTION)
    reads, edge_heads = group(_READS), group(_EDGE_HEADS)
    return Graph(
        input_string=header["input_string"],
        input_tokens=tensors["input_tokens"],
        active_features=tensors["active_features"],
        adjacency_matrix=Edges(tensors["edges.row_ptr"], tensors["edges.source"].long(), tensors["edges.weight"]),
        cfg=header["cfg"],
        selected_features=tensors["selected_features"],
        activation_values=tensors["activation_values"],
        logit_targets=[LogitTarget(text, token) for text, token in header["logit_targets"]],
        logit_probabilities=tensors["logit_probabilities"],
        scan=header["scan"],
        vocab_size=header["vocab_size"],
        balance=RowBalance(*balance) if balance else None,
        targets=TargetTable(
            label=header["target_labels"],
            layer=tensors["targets.layer"],
            position=tensors["targets.position"],
            weight=tensors["targets.weight"],
            token_id=tensors["targets.token_id"],
            kind=header["target_kinds"],
            reads=StreamReads(*reads) if reads else None,
        ),
        token_strings=header["token_strings"],
        reconstruction=Reconstruction(*reconstruction) if reconstruction else None,
        provenance=header["provenance"],
        validation=ValidationReport.from_json(header["validation"]) if "validation" in header else None,
        unfinished=_unfinished(header, tensors),
        edge_heads=EdgeHeads(*edge_heads) if edge_heads else None,
        scores=[AttentionScore.from_dict(score) for score in header.get("attention_scores", [])],
        labels=labels_from_json(header.get("labels", {})),
        records=records_from_tensors(tensors),
        grouping=_grouping(header),
        story=header.get("story"),
        parts=header.get("parts", ()),
    )


def _grouping(header: dict[str, Any]) -> dict[str, Any] | None:
    if "grouping" not in header:
        return None
    View.of_grouping(header["grouping"])  # or it raises
    return dict(header["grouping"])


def _unfinished(header: dict[str, Any], tensors: dict[str, Tensor]) -> Unfinished | None:
    if "unfinished" not in header:
        return None
    rows = {name.removeprefix(_UNFINISHED): tensor for name, tensor in tensors.items() if name.startswith(_UNFINISHED)}
    return Unfinished(dict(header["unfinished"]), rows)


def as_graph(graph_or_path: Graph | str | Path) -> Graph:
    """The graph itself, or the one in a file: native, or circuit-tracer's ``.pt``.

    Args:
        graph_or_path: A graph, or the path of a file.

    Returns:
        The graph, on the CPU.
    """
    if isinstance(graph_or_path, Graph):
        return graph_or_path
    if is_native(graph_or_path):
        return load_graph(graph_or_path)
    path = Path(graph_or_path)
    if path.is_file() and path.name.endswith((".json", ".json.gz")):
        raise FileFormatError(f"{path} is JSON, and a graph file is needed here. {_graph_of(path)}")
    return load_pt(graph_or_path)


def _graph_of(path: Path) -> str:
    """What to give instead of a viewer's file."""
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    beside = [path.with_name(stem + suffix) for suffix in (".safetensors", ".pt")]
    if found := next((each for each in beside if each.is_file()), None):
        return f"Give the one that it was made from: {found}"
    return (
        "Give the one that it was made from (.safetensors, or circuit-tracer's .pt); where there is none, trace the prompt "
        f"again with circuit-tracer attribute ... -o {stem}.safetensors. A viewer's file holds a pruned graph, which cannot "
        "become a whole one again"
    )
