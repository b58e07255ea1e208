"""circuit-tracer's graph files (``.pt``): a torch pickle of a dict. Read without running code; written as plain values.

Dialects read: ``logit_targets`` as LogitTarget records, as plain pairs (ours) or as a tensor of ids;
``logit_tokens`` instead of it (v0.2-0.3.1); ``scan_name`` for ``scan`` (v0.5.1+); ``cfg`` as UnifiedConfig, as a
TransformerLens configuration, or as a plain dict (ours).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.files import atomic_write, shortened
from circuit_tracer.files.torch_archive import load_torch_archive
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


class _Record:
    """Stands in for a configuration class of another library: takes its attributes, has none of its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Ignored:
    """Stands in for a numpy scalar among the fields of a configuration; no such field is used."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# What may be named in a file, besides tensors, and what is built in its place.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (LogitTarget, "circuit_tracer.attribution.targets.LogitTarget"),
    (LogitTarget, "circuit_tracer.graph.targets.LogitTarget"),
    (_Record, "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig"),
    (_Record, "transformer_lens.HookedTransformerConfig.HookedTransformerConfig"),
    (_Record, "transformer_lens.config.HookedTransformerConfig.HookedTransformerConfig"),
    (_Ignored, "numpy.core.multiarray.scalar"),
    (_Ignored, "numpy._core.multiarray.scalar"),
    (_Ignored, "numpy.dtype"),
]


def load_pt(path: str | Path, map_location: str | torch.device = "cpu") -> Graph:
    """Read a graph of any version of circuit-tracer, or one written by ``save_pt``.

    Only tensors, plain values and the classes in ``_STAND_INS`` are accepted; nothing in the file is executed. Raises
    InputError if there is no such file, FileFormatError if it is no such graph or names anything else.
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
            adjacency_matrix=content["adjacency_matrix"],
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
    """Write circuit-tracer's keys as tensors and plain values; ``torch.load(path, weights_only=True)`` reads it.

    The matrix is dense: N * N * 4 bytes. Balance, target table, token strings and provenance have no place in this
    format; ``Graph.save`` keeps them.
    """
    content = {
        "input_string": graph.input_string,
        "adjacency_matrix": graph.adjacency_matrix.float(),
        "cfg": graph.cfg.to_dict(),
        "active_features": graph.active_features,
        "logit_targets": [(target.token_str, target.vocab_idx) for target in graph.logit_targets],
        "logit_probabilities": graph.logit_probabilities,
        "vocab_size": graph.vocab_size,
        "input_tokens": graph.input_tokens,
        "selected_features": graph.selected_features,
        "activation_values": graph.activation_values,
        "scan": graph.scan,
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer reports a full disk as a RuntimeError.
            raise OSError(str(error)) from error


def _targets(content: dict[str, Any]) -> list[LogitTarget]:
    stored = content.get("logit_targets", content.get("logit_tokens"))
    if stored is None:
        raise FileFormatError("there are neither logit_targets nor logit_tokens")
    if isinstance(stored, Tensor):
        return [LogitTarget("", token) for token in stored.tolist()]
    return [LogitTarget(text, operator.index(token)) for text, token in stored]
