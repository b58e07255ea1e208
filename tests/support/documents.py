"""Viewer JSON made by hand, for pages that a test can predict."""

from __future__ import annotations

import random
from typing import Any


def node(name: str, kind: str, layer: str, position: int, **more: Any) -> dict[str, Any]:
    """A node with the fields that every viewer needs."""
    return {
        "node_id": name,
        "feature": more.pop("feature", -1),
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "jsNodeId": name,
        "clerp": more.pop("clerp", ""),
        **more,
    }


def feature(layer: int, index: int, position: int, **more: Any) -> dict[str, Any]:
    paired = (layer + index) * (layer + index + 1) // 2 + index
    more = {"influence": 0.5, "activation": 1.0, **more}
    return node(f"{layer}_{index}_{position}", "cross layer transcoder", str(layer), position, feature=paired, **more)


def small_document(**metadata: Any) -> dict[str, Any]:
    """Two tokens, three features, an error, two outputs; every sum can be checked by hand."""
    nodes = [
        feature(0, 5, 0, clerp="alpha", influence=0.2),
        feature(0, 6, 1, clerp="beta", influence=0.4),
        feature(1, 7, 1, clerp="gamma", influence=0.6),
        node("0_-1_1", "mlp reconstruction error", "0", 1, influence=0.7),
        node("E_10_0", "embedding", "E", 0, feature=0, influence=0.5),
        node("E_11_1", "embedding", "E", 1, feature=1, influence=0.5),
        node("3_20_1", "logit", "3", 1, feature=20, clerp='Output "yes" (p=0.750)', token_prob=0.75),
        node("3_21_1", "logit", "3", 1, feature=21, clerp='Output "no" (p=0.250)', token_prob=0.25),
    ]
    links = [
        ("E_10_0", "0_5_0", 2.0),
        ("E_11_1", "0_6_1", 1.0),
        ("0_5_0", "1_7_1", 3.0),
        ("0_6_1", "1_7_1", -1.0),
        ("1_7_1", "3_20_1", 4.0),
        ("0_5_0", "3_20_1", 1.0),
        ("0_-1_1", "3_20_1", -3.0),
        ("0_6_1", "3_21_1", 1.0),
    ]
    return {
        "metadata": {
            "slug": "small",
            "scan": "some/transcoders",
            "prompt": "one two",
            "prompt_tokens": ["one", " two"],
            "schema_version": 1,
            "node_threshold": 0.8,
            **metadata,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": source, "target": target, "weight": weight} for source, target, weight in links],
    }


def headed_document(**metadata: Any) -> dict[str, Any]:
    """The small document, of which two links say their strongest heads, and an attention target with its contributors."""
    document = small_document(**metadata)
    heads = {
        ("0_5_0", "1_7_1"): {"direct": 0.0, "hops": 1.2, "first": [[0, 1, 2.5], [1, 0, -0.5]], "last": [[0, 1, 2.75]]},
        ("0_5_0", "3_20_1"): {"direct": 0.25, "hops": 0.75, "first": [[1, 3, 0.75]], "last": [[1, 3, 0.75]]},
    }
    for link in document["links"]:
        if (found := heads.get((link["source"], link["target"]))) is not None:
            link["heads"] = found
    look = "L1H3 ' two'@1 -> 'one'@0 rather than the rest"
    results = {
        "top_q_marginal_contributors": [["0_6_1", 1.234], ["0_-1_1", -0.5]],
        "top_k_marginal_contributors": [["0_5_0", 2.0], ["1_99_0", 0.25]],
        "pair_wise_contributors": [["0_6_1", "0_5_0", 0.625]],
    }
    fields = {"token": look, "target_kind": "attention", "token_prob": 1.0, "qk_tracing_results": results}
    document["nodes"].append(node("3_22_1", "logit", "3", 1, feature=22, clerp=f'Output "{look}" (p=1.000)', **fields))
    document["links"].append({"source": "0_6_1", "target": "3_22_1", "weight": 1.0})
    side = {"parts": {"feature": 1.5, "bias": -0.25}, "mass": {}, "top": [["0_5_0", 1.5], ["1_bias_decoder_0", -0.25]]}
    score = {
        "layer": 0,
        "head": 1,
        "query": 1,
        "key": 0,
        "versus": None,
        "label": "L0H1",
        "score": 1.25,
        "residual": 1e-8,
    }
    score |= {"log_attention": -0.25, "pattern": [0.75, 0.25], "query_side": side, "key_side": side, "pairs": []}
    document["attention_scores"] = [score, {**score, "pattern": "wrong"}, None]
    document["qk_only_nodes"] = {"1_99_0": {"node_id": "1_99_0", "clerp": "pruned away"}, "2_1_0": None}
    return document


def large_document(n_nodes: int, n_links: int, n_tokens: int = 40, n_layers: int = 26) -> dict[str, Any]:
    """A random layered, causal graph of a given size."""
    draw = random.Random(0)
    document = small_document(prompt_tokens=[f" tok{position}" for position in range(n_tokens)])
    nodes = [node(f"E_9_{p}", "embedding", "E", p, feature=p, influence=0.5) for p in range(n_tokens)]
    last = n_tokens - 1
    outputs = [
        node(
            f"{n_layers + 1}_{k}_{last}",
            "logit",
            str(n_layers + 1),
            last,
            clerp=f'Output "o{k}" (p=0.1)',
            token_prob=0.1,
        )
        for k in range(10)
    ]
    features = [
        feature(
            draw.randrange(n_layers), index, draw.randrange(n_tokens), influence=draw.random(), clerp=f"label {index}"
        )
        for index in range(n_nodes - len(nodes) - len(outputs))
    ]
    features.sort(key=lambda each: int(each["layer"]))
    nodes += features + outputs
    links = {}
    while len(links) < n_links:
        target, source = nodes[draw.randrange(n_tokens, n_nodes)], nodes[draw.randrange(n_nodes - 10)]
        below = source["layer"] == "E" or int(source["layer"]) < int(target["layer"])
        if below and source["ctx_idx"] <= target["ctx_idx"]:
            links[source["node_id"], target["node_id"]] = draw.gauss(0, 1) ** 3
    document["nodes"] = nodes
    document["links"] = [{"source": s, "target": t, "weight": w} for (s, t), w in links.items()]
    return document


def feature_details() -> dict[str, Any]:
    """One feature file with everything that the pane shows."""
    return {
        "index": 5,
        "examples_quantiles": [
            {
                "quantile_name": "Top",
                "examples": [
                    {"tokens": ["a", " b", " c"], "tokens_acts_list": [0.0, 2.0, 0.5], "train_token_ind": 1},
                    {"tokens": ["\\xc3", "\\xa9", " x"], "tokens_acts_list": [1.0, 0.0, 0.0], "train_token_ind": 0},
                ],
            }
        ],
        "top_logits": [" up", " more"],
        "bottom_logits": [" down"],
        "act_max": 2.0,
        "histogram": [9, 4, 1],
        "activation_frequency": 0.01,
    }


def small_comparison(**changes: Any) -> dict[str, Any]:
    """Two prompts of two tokens, of which the first differs; "yes" goes from 4 to 1. Every sum can be checked by hand.

    alpha and an error are in both, beta in A only, gamma in B only; delta has a part on a longer path alone.
    """

    def side(prompt: str, value: float, probability: float) -> dict[str, Any]:
        counts = {"n_features": 3, "n_nodes": 6, "n_edges": 5}
        named = {"prompt": prompt, "model": "small", "fingerprint": None, "edits": [], "residual": 0.0}
        return {**named, "value": value, "probability": probability, **counts}

    def each(name: str, kind: str, label: str | None, a: float, b: float, **more: Any) -> dict[str, Any]:
        layer, number, column = name.split("_")
        known = {"activation_a": None, "activation_b": None, "activation": None, "weight": None, "carried": None}
        within = more.pop("within", "both")
        return {
            "id": name,
            "kind": kind,
            "layer": -1 if layer == "E" else int(layer),
            "column": int(column),
            "feature": int(number),
            "label": label,
            "within": within,
            "a": None if within == "b" else name,
            "b": None if within == "a" else name,
            "influence_a": 0.0 if within == "b" else 0.5,
            "influence_b": 0.0 if within == "a" else 0.5,
            "edge_a": a,
            "edge_b": b,
            "difference": b - a,
            **known,
            **more,
        }

    nodes = [
        each("E_10_0", "token", " one", 0.0, 0.0, within="a"),
        each("E_12_0", "token", " won", 0.0, 0.0, within="b"),
        each("E_11_1", "token", " two", 0.0, 0.0),
        each("0_5_0", "feature", "delta", 0.0, 0.0, activation_a=1.0, activation_b=2.0, carried=-2.0),
        each("0_6_1", "feature", "beta", 2.0, 0.0, within="a", activation_a=1.0, carried=-2.0),
        each("0_8_1", "feature", "gamma", 0.0, 1.0, within="b", activation_b=1.0, carried=1.0),
        each(
            "1_7_1", "feature", "alpha", 3.0, 1.0,
            activation_a=3.0, activation_b=2.0, activation=-0.75, weight=-1.25, carried=-1.0,
        ),
        each("0_-1_1", "error", None, -1.0, -1.5),
        each("2_20_1", "target", "yes", 0.0, 0.0),
        each("2_21_1", "target", "no", 0.0, 0.0),
    ]  # fmt: skip
    number = {node["id"]: place for place, node in enumerate(nodes)}
    links = [
        ("E_10_0", "0_5_0", 1.0, 0.0),
        ("E_12_0", "0_5_0", 0.0, 2.0),
        ("0_5_0", "1_7_1", 2.0, 1.0),
        ("0_6_1", "2_20_1", 2.0, 0.0),
        ("0_8_1", "2_20_1", 0.0, 1.0),
        ("1_7_1", "2_20_1", 3.0, 1.0),
        ("0_-1_1", "2_20_1", -1.0, -1.5),
        ("1_7_1", "2_21_1", 1.0, 1.0),
    ]
    parts = {"activation": -0.75, "weight": -1.25, "appeared": 1.0, "disappeared": -2.0}
    none = dict.fromkeys(parts, 0.0)
    shares = [
        ("feature", 4, 5.0, 2.0, 5.0, parts),
        ("error", 1, -1.0, -1.5, 0.5, none),
        ("bias", 0, 0.0, 0.5, 0.5, none),
    ]
    alike = {"weighted_jaccard": 0.5, "cosine": 0.75, "rank_biased_overlap": 0.25}
    return {
        "a": side("<s> one two", 4.0, 0.75),
        "b": side("<s> won two", 1.0, 0.25),
        "same": ["model", "dictionary"],
        "positions": "same",
        "columns": [
            {"a": 0, "b": 0, "token_a": " one", "token_b": " won"},
            {"a": 1, "b": 1, "token_a": " two", "token_b": " two"},
        ],
        "n_layers": 2,
        "target": "yes",
        "target_node": number["2_20_1"],
        "others": ["no"],
        "difference": -3.0,
        "accounted": -3.0,
        "gap": 0.0,
        "unexplained": 0.125,
        "conclusive": True,
        "verdict": ["features carry it"],
        "shares": [
            {"kind": kind, "count": count, "a": a, "b": b, "difference": b - a, "mass": mass, **split}
            for kind, count, a, b, mass, split in shares
        ],
        "nodes": nodes,
        "links": [{"source": number[s], "target": number[t], "a": a, "b": b} for s, t, a, b in links],
        "rest": {"count": 2, "difference": 0.25, "mass": 0.25},
        "similarity": {"features": alike, "nodes": alike},
        "version": 1,
        **changes,
    }
