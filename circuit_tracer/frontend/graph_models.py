"""circuit-tracer's `circuit_tracer.frontend.graph_models`: a viewer's JSON as objects, for programs that fill one by hand.

The documents of this package are written by `graph/files/viewer_json.py`, which needs none of these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from circuit_tracer.graph.files.node_ids import cantor_pair
from circuit_tracer.graph.files.viewer_json import FEATURE_TYPES
from circuit_tracer.graph.nodes import NodeKind

__all__ = ["Link", "Metadata", "Model", "Node", "QParams"]


class Metadata(BaseModel):
    """What is said of a graph; other fields that the format knows may be given too."""

    model_config = ConfigDict(extra="allow")

    slug: str
    scan: str
    transcoder_list: list[str] = []
    prompt_tokens: list[str]
    prompt: str
    node_threshold: float | None = None
    schema_version: int | None = 1


class QParams(BaseModel):
    """What a viewer opens with."""

    pinnedIds: list[str] = []
    supernodes: list[list[str]] = []
    linkType: Literal["both", "either", "input", "output"] = "both"
    clickedId: str = ""
    sg_pos: str = ""


class Node(BaseModel):
    """A node. Ids are those of this package: an error node's is its own, and `jsNodeId` is the node's id."""

    model_config = ConfigDict(extra="allow")

    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    jsNodeId: str = ""
    clerp: str = ""
    token_prob: float = 0.0
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    influence: float | None = None
    activation: float | None = None

    def model_post_init(self, _: Any) -> None:
        self.jsNodeId = self.jsNodeId or self.node_id

    @classmethod
    def feature_node(
        cls, layer: int, pos: int, feat_idx: int, influence: float | None = None, activation: float | None = None
    ) -> Node:
        """A feature at a position."""
        return cls(
            node_id=f"{layer}_{feat_idx}_{pos}",
            feature=cantor_pair(layer, feat_idx),
            layer=str(layer),
            ctx_idx=pos,
            feature_type=FEATURE_TYPES[NodeKind.FEATURE],
            influence=influence,
            activation=activation,
        )

    @classmethod
    def error_node(cls, layer: int, pos: int, influence: float | None = None) -> Node:
        """What the features leave of an MLP's output at a position."""
        return cls(
            node_id=f"{layer}_-1_{pos}",
            feature=-1,
            layer=str(layer),
            ctx_idx=pos,
            feature_type=FEATURE_TYPES[NodeKind.ERROR],
            influence=influence,
        )

    @classmethod
    def token_node(cls, pos: int, vocab_idx: int, influence: float | None = None) -> Node:
        """A token of the prompt."""
        return cls(
            node_id=f"E_{int(vocab_idx)}_{pos}",
            feature=pos,
            layer="E",
            ctx_idx=pos,
            feature_type=FEATURE_TYPES[NodeKind.TOKEN],
            influence=influence,
        )

    @classmethod
    def logit_node(
        cls, pos: int, vocab_idx: int, token: str, num_layers: int, target_logit: bool = False, token_prob: float = 0.0
    ) -> Node:
        """A token that may come next."""
        label = token.replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")
        return cls(
            node_id=f"{num_layers + 1}_{vocab_idx}_{pos}",
            feature=vocab_idx,
            layer=str(num_layers + 1),
            ctx_idx=pos,
            feature_type=FEATURE_TYPES[NodeKind.TARGET],
            token_prob=token_prob,
            is_target_logit=target_logit,
            clerp=f'Output "{label}" (p={token_prob:.3f})',
        )


class Link(BaseModel):
    """An edge, by the ids of its ends."""

    source: str
    target: str
    weight: float


class Model(BaseModel):
    """The whole document; `model_dump_json()` is the file."""

    metadata: Metadata
    qParams: QParams
    nodes: list[Node]
    links: list[dict[str, Any]]
