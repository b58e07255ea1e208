"""Is a graph JSON one that all viewers show? Stricter than the schema, in plain words.

The rules, which messages name by number, are what Anthropic's, circuit-tracer's and Neuronpedia's viewers need
together: R1 node ids are unique and links lead to nodes. R2 jsNodeId equals node_id. R3 feature is an integer;
embeddings differ. R4 schema_version is the integer 1 (features are paired). R5 layer is a decimal number or E;
something lies above layer 0. R6 logits are labelled Output "token" (p=0.123). R7 logits have token_prob. R8 with
node_threshold, features and errors have influence. R9 qParams has strict types. R10 clerp is a string. R11 numbers
are finite. R12 prompt_tokens has a string for each position. R13 slug and scan of an upload are plain names. R14
features are found in one way. R15 metadata has no nulls. R16 feature_type is a known one. R17 scores are written (the
exporter does). R18 an upload has 1 KiB to 100 MiB.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

ExportTarget = Literal["local", "neuronpedia"]

FEATURE_TYPES = {
    "cross layer transcoder",
    "mlp reconstruction error",
    "embedding",
    "logit",
    "lorsa",
    "lorsa error",
    "bias",
    "unknown",
    "unexplored node",
}
LINK_TYPES = {"both", "either", "input", "output"}
MIN_UPLOAD_BYTES, MAX_UPLOAD_BYTES = 1024, 104_857_600
SLUG = re.compile(r"[A-Za-z0-9_.-]+")
MODEL_ID = re.compile(r"(?=.{2,32}$)[a-z](?!.*(--|\.\.))[a-z0-9.-]*[a-z0-9]")
LOGIT_LABEL = re.compile(r'Output "[^"]*" \(p=\d+(\.\d+)?(e-?\d+)?\)')
_LAYERED = {"cross layer transcoder", "mlp reconstruction error", "lorsa", "lorsa error", "bias", "unexplored node"}
_SETTINGS = {"max_n_logits": int, "desired_logit_prob": float, "batch_size": int, "max_feature_nodes": int}


def validate_document(document: Any, target: ExportTarget = "local") -> list[str]:
    """Everything wrong with a graph JSON, as sentences; empty if nothing is.

    Checks types, required fields, unique ids, links that lead nowhere, and the conditions under which a viewer shows a
    blank page or an error. ``target`` "neuronpedia" adds the rules of uploading.

    Args:
        document: Plain values, as parsed.
        target: "local", or "neuronpedia" for the rules of uploading.

    Returns:
        What is wrong, a sentence each.

    Examples:
        >>> from circuit_tracer.graph.files import load_viewer_json, validate_document
        >>> validate_document(load_viewer_json(graph.to_json("dallas", "graphs")))
        []
    """
    if not isinstance(document, dict):
        return [f"the file holds a {type(document).__name__}; expected an object with metadata, qParams, nodes, links"]
    problems = [
        f"{name} is missing or no {kind.__name__}"
        for name, kind in (("metadata", dict), ("qParams", dict), ("nodes", list), ("links", list))
        if not isinstance(document.get(name), kind)
    ]
    if problems:
        return problems
    links = document["links"]
    broken = [link for link in links if not isinstance(link, dict) or not {"source", "target", "weight"} <= set(link)]
    if broken:
        return [_times("links without source, target or weight", broken)]
    return validate_parts(
        document["metadata"],
        document["qParams"],
        document["nodes"],
        [link["source"] for link in links],
        [link["target"] for link in links],
        [link["weight"] for link in links],
        target,
    )


def validate_parts(
    metadata: dict[str, Any],
    q_params: dict[str, Any],
    nodes: Sequence[Any],
    sources: Sequence[Any],
    targets: Sequence[Any],
    weights: Sequence[Any],
    target: ExportTarget = "local",
) -> list[str]:
    """``validate_document`` for a document whose links are still columns."""
    problems = _metadata_problems(metadata, target) + q_param_problems(q_params)
    not_objects = [node for node in nodes if not isinstance(node, dict)]
    if not_objects:
        return [*problems, _times("nodes that are no objects", not_objects)]
    tokens = metadata.get("prompt_tokens")
    n_pos = len(tokens) if isinstance(tokens, list) else 0
    problems += _node_problems(nodes, n_pos, "node_threshold" in metadata)
    problems += _link_problems({node.get("node_id") for node in nodes}, sources, targets, weights)
    if target == "neuronpedia":
        layers = [str(n.get("layer")) for n in nodes if n.get("feature_type") in _LAYERED]
        if not any(layer.isdecimal() and int(layer) > 0 for layer in layers):
            problems.append("no feature or error above layer 0: Neuronpedia stops with 'No layer found' (R5)")
    return problems


def upload_size_problems(n_bytes: int) -> list[str]:
    """What is wrong with the size of a file for Neuronpedia (R18)."""
    if n_bytes > MAX_UPLOAD_BYTES:
        return [f"the file has {n_bytes:,} bytes, Neuronpedia takes {MAX_UPLOAD_BYTES:,}; lower the thresholds (R18)"]
    if n_bytes < MIN_UPLOAD_BYTES:
        return [f"the file has {n_bytes:,} bytes, Neuronpedia takes no less than {MIN_UPLOAD_BYTES:,} (R18)"]
    return []


def q_param_problems(q_params: dict[str, Any]) -> list[str]:
    """What is wrong with a saved view (R9): strict types, none null."""
    problems = []
    pinned = q_params.get("pinnedIds", [])
    if not _is_list_of_str(pinned):
        problems.append("qParams.pinnedIds must be a list of node ids (R9)")
    supernodes = q_params.get("supernodes", [])
    if not (isinstance(supernodes, list) and all(_is_list_of_str(group) for group in supernodes)):
        problems.append("qParams.supernodes must be a list of [label, node id, ...] lists (R9)")
    if "linkType" in q_params and q_params["linkType"] not in LINK_TYPES:
        problems.append(
            f"qParams.linkType is {q_params['linkType']!r}; expected one of {', '.join(sorted(LINK_TYPES))}"
        )
    problems += [
        f"qParams.{name} is {q_params[name]!r}; it must be a string, '' for none (R9)"
        for name in ("clickedId", "sg_pos")
        if name in q_params and not isinstance(q_params[name], str)
    ]
    return problems


def _metadata_problems(metadata: dict[str, Any], target: ExportTarget) -> list[str]:
    problems = [
        f"metadata.{name} is {metadata.get(name)!r}; it must be a string"
        for name in ("slug", "scan", "prompt")
        if not isinstance(metadata.get(name), str)
    ]
    if not _is_list_of_str(metadata.get("prompt_tokens")) or not metadata["prompt_tokens"]:
        problems.append("metadata.prompt_tokens must be a list of strings, one a position (R12)")
    problems += [f"metadata.{name} is null; leave it out instead (R15)" for name, v in metadata.items() if v is None]
    for name in ("node_threshold", "replacement_score", "completeness_score"):
        if metadata.get(name) is not None and not _is_number(metadata[name]):
            problems.append(f"metadata.{name} is {metadata[name]!r}; it must be a finite number or absent")
    version = metadata.get("schema_version")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool)):
        problems.append(f"metadata.schema_version is {version!r}; viewers know the integer 1 only (R4)")
    settings = metadata.get("generation_settings", {})
    for name, kind in _SETTINGS.items():
        value = settings.get(name, 0) if isinstance(settings, dict) else None
        if not _is_number(value) or (kind is int and not isinstance(value, int)):
            problems.append(f"metadata.generation_settings.{name} is {value!r}; it must be {kind.__name__} (R15)")
    details = metadata.get("feature_details", {})
    if target == "neuronpedia":
        problems += _upload_problems(metadata, details if isinstance(details, dict) else {})
    return problems


def _upload_problems(metadata: dict[str, Any], details: dict[str, Any]) -> list[str]:
    problems = []
    if isinstance(metadata.get("slug"), str) and not SLUG.fullmatch(metadata["slug"]):
        problems.append(f"slug {metadata['slug']!r}: Neuronpedia takes letters, digits, '_', '.', '-' only (R13)")
    if isinstance(metadata.get("scan"), str) and not MODEL_ID.fullmatch(metadata["scan"]):
        problems.append(
            f"scan {metadata['scan']!r}: Neuronpedia takes one of its model ids, such as gemma-2-2b (2-32 lower-case "
            "letters, digits, '.', '-'); give it as scan (R13)"
        )
    if "feature_json_base_url" in details and (
        "neuronpedia_source_set" in details or metadata.get("schema_version") == 1
    ):
        problems.append(
            "feature_json_base_url is never read together with neuronpedia_source_set or schema_version 1; "
            "choose one way to find features (R14)"
        )
    return problems


def _node_problems(nodes: Sequence[dict[str, Any]], n_pos: int, with_threshold: bool) -> list[str]:
    found: dict[str, list[Any]] = {}

    def note(problem: str, node: dict[str, Any]) -> None:
        found.setdefault(problem, []).append(node.get("node_id"))

    for node in nodes:
        kind, clerp, feature, layer = (node.get(name) for name in ("feature_type", "clerp", "feature", "layer"))
        position = node.get("ctx_idx")
        if not isinstance(node.get("node_id"), str):
            note("nodes without a node_id string (R1)", node)
        if node.get("jsNodeId") != node.get("node_id"):
            note("nodes whose jsNodeId is not their node_id; pins get lost (R2)", node)
        if kind not in FEATURE_TYPES:
            note(f"nodes of the unknown feature_type {kind!r} (R16)", node)
        if not isinstance(feature, int) or isinstance(feature, bool):
            note("nodes whose feature is no integer; -1 is for errors, null breaks a viewer (R3)", node)
        if not (layer == "E" or (isinstance(layer, str | int) and str(layer).isdecimal())):
            note("nodes whose layer is neither a decimal number nor 'E' (R5)", node)
        if not isinstance(position, int) or not 0 <= position < n_pos:
            note(f"nodes whose ctx_idx is outside the {n_pos} prompt tokens (R12)", node)
        if not isinstance(clerp, str):
            note("nodes whose clerp is no string; write '' for no label (R10)", node)
        if kind == "logit" and not (isinstance(clerp, str) and LOGIT_LABEL.fullmatch(clerp)):
            note('logit nodes whose clerp is not of the form Output "token" (p=0.123) (R6)', node)
        if kind == "logit" and not _is_number(node.get("token_prob")):
            note("logit nodes without token_prob (R7)", node)
        if with_threshold and kind in _LAYERED and not _is_number(node.get("influence")):
            note("feature or error nodes without influence, which node_threshold hides (R8)", node)
        for name in ("influence", "activation"):
            if node.get(name) is not None and not _is_number(node[name]):
                note(f"nodes whose {name} is no finite number (R11)", node)
    problems = [_times(problem, where) for problem, where in found.items()]
    counts = Counter(node.get("node_id") for node in nodes)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        problems.append(_times("node ids that occur more than once (R1)", repeated))
    embeddings = [node.get("feature") for node in nodes if node.get("feature_type") == "embedding"]
    if len(set(embeddings)) != len(embeddings):
        problems.append("embedding nodes share a feature number; use the position, or a viewer drops them (R3)")
    if not nodes:
        problems.append("there are no nodes; lower the pruning")
    elif not any(node.get("feature_type") == "logit" for node in nodes):
        problems.append("there is no logit node; every viewer needs one")
    return problems


def _link_problems(
    known: set[Any], sources: Sequence[Any], targets: Sequence[Any], weights: Sequence[Any]
) -> list[str]:
    problems = []
    dangling = [(s, t) for s, t in zip(sources, targets, strict=True) if s not in known or t not in known]
    if dangling:
        problems.append(_times("links to or from nodes that are not there (R1)", dangling))
    infinite = [weight for weight in weights if not _is_number(weight)]
    if infinite:
        problems.append(_times("link weights that are no finite numbers (R11)", infinite))
    pairs = Counter(zip(sources, targets, strict=True))
    repeated = [pair for pair, count in pairs.items() if count > 1]
    if repeated:
        problems.append(_times("links that occur more than once", repeated))
    return problems


def _times(problem: str, where: Sequence[Any]) -> str:
    shown = ", ".join(repr(item)[:80] for item in where[:3])
    return f"{len(where)} {problem}: {shown}{', ...' if len(where) > 3 else ''}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
