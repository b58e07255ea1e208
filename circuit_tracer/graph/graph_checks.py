"""Do the parts of a graph fit together? InputError names the first that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_all_texts, require_ids, require_tensors, require_texts, require_whole

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph


def check_types(graph: Graph, weights: Tensor) -> None:
    """What each part is; weights: (K,) of the targets."""
    require_tensors(
        whole={name: getattr(graph, name) for name in ("input_tokens", "active_features", "selected_features")},
        numbers={"activation_values": graph.activation_values, "logit_probabilities": weights},
    )
    require_texts(input_string=graph.input_string)
    require_all_texts("logit_targets' texts", [target.token_str for target in graph.logit_targets])
    require_ids("the id of a logit target", (target.vocab_idx for target in graph.logit_targets))
    require_whole(vocab_size=graph.vocab_size)
    for name, texts in (("scan", graph.scan), ("token_strings", graph.token_strings)):
        if texts is not None and not (name == "scan" and isinstance(texts, str)):
            require_all_texts(name, texts)


def check_lengths(graph: Graph, weights: Tensor) -> None:
    """How long each part is; weights: (K,) of the targets."""
    if graph.input_tokens.ndim != 1 or len(graph.input_tokens) == 0:
        raise InputError(
            f"input_tokens has shape {tuple(graph.input_tokens.shape)}; expected (P,) with P of at least 1"
        )
    if graph.active_features.ndim != 2 or graph.active_features.shape[1] != 3:
        raise InputError(
            f"active_features has shape {tuple(graph.active_features.shape)}; expected (N_f, 3) rows: "
            "layer, position, index"
        )
    n_active = len(graph.active_features)
    if graph.activation_values.shape != (n_active,):
        raise InputError(
            f"activation_values has shape {tuple(graph.activation_values.shape)}; expected ({n_active},), "
            "one value for each row of active_features"
        )
    n_targets = len(graph.logit_targets)
    if n_targets == 0 or weights.shape != (n_targets,):
        raise InputError(
            f"{n_targets} logit_targets with logit_probabilities of shape {tuple(weights.shape)}; "
            "expected at least one target and one weight for each"
        )
    if graph.token_strings is not None and len(graph.token_strings) != graph.n_pos:
        raise InputError(f"{len(graph.token_strings)} token_strings for {graph.n_pos} tokens")


def check_nodes(graph: Graph) -> None:
    """That nodes exist, ascend, and are as many as the edges are about."""
    selected = graph.selected_features
    n_active = len(graph.active_features)
    if selected.ndim != 1 or selected.dtype not in (torch.int64, torch.int32):
        raise InputError(f"selected_features is {selected.dtype} {tuple(selected.shape)}; expected int64 (N_s,)")
    if len(selected) and not (int(selected[0]) >= 0 and int(selected[-1]) < n_active):
        raise InputError(
            f"selected_features reaches from {int(selected[0])} to {int(selected[-1])}; "
            f"they index {n_active} active features"
        )
    if bool((selected.diff() <= 0).any()):
        raise InputError("selected_features must ascend without duplicates; sort them together with the edges")
    _check_features(graph)
    if len(graph.targets) != len(graph.logit_targets):
        raise InputError(f"{len(graph.targets)} rows in targets for {len(graph.logit_targets)} logit_targets")
    if graph.targets.reads is not None:
        reads, d_model = graph.targets.reads, graph.cfg.d_model
        reads.check(len(graph.targets), graph.n_layers, graph.n_pos, d_model or reads.vector.shape[-1])
    expected, n_errors = graph.nodes.layout.n_nodes, (1 + graph.attention) * graph.n_layers
    if graph.n_nodes != expected:
        raise InputError(
            f"the adjacency matrix has {graph.n_nodes} nodes; expected {expected} = {len(selected)} features "
            f"+ {n_errors}x{graph.n_pos} errors + {graph.n_pos} tokens + {len(graph.logit_targets)} targets"
        )
    if graph.balance is not None and len(graph.balance.bias) != expected:
        raise InputError(f"the balance has {len(graph.balance.bias)} rows for {expected} nodes")
    if graph._edge_heads is not None:
        graph._edge_heads.check(graph._edges, graph.n_layers, graph.cfg.n_heads)
    if graph.reconstruction is not None and len(graph.reconstruction.nmse) != graph.n_layers:
        raise InputError(f"the reconstruction has {len(graph.reconstruction.nmse)} layers, the model {graph.n_layers}")

    for score in graph.scores:
        score.check(graph.n_layers, graph.n_pos)


def _check_features(graph: Graph) -> None:
    features = graph.active_features.long()
    if len(features) == 0:
        return
    limits = (graph.n_layers, graph.n_pos)
    for column, (name, limit) in enumerate(zip(("layer", "position"), limits, strict=True)):
        low, high = int(features[:, column].min()), int(features[:, column].max())
        if low < 0 or high >= limit:
            raise InputError(f"active features have {name}s {low}..{high}; the graph has {limit} {name}s")
    width = int(features[:, 2].max()) + 1
    key = (features[:, 0] * graph.n_pos + features[:, 1]) * width + features[:, 2]
    if bool((key.diff() <= 0).any()):
        raise InputError("active_features must be sorted by (layer, position, index) without duplicates")
