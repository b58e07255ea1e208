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
