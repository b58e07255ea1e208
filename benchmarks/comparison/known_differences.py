"""Where circuit-tracer 0.5.0 and this package are known to differ, and why. `benchmarks.agreement` fails on any other one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One documented difference: what circuit-tracer 0.5.0 does, what we do, and which check shows it."""

    check: str
    theirs: str
    ours: str


KNOWN: dict[str, Difference] = {
    "error-id": Difference(
        check="viewer node ids",
        theirs="an error node's id is 0_{layer}_{position}, which is also the id of feature {layer} of layer 0 at that "
        "position: two nodes share an id, and links to them cannot be told apart",
        ours="{layer}_-1_{position}, unique",
    ),
    "js-node-id": Difference(
        check="viewer node ids",
        theirs="jsNodeId of a feature has no position ({layer}_{feature}-0), so a viewer that identifies nodes by it "
        "merges a feature's occurrences",
        ours="jsNodeId equals node_id",
    ),
    "quoted-token": Difference(
        check="viewer labels",
        theirs='a quotation mark inside a target token is written as it is into Output "..." (p=...), and the viewers, '
        "which read up to the second quotation mark, lose the rest of the token",
        ours="a quotation mark inside a token becomes a typographic one",
    ),
    "selection": Difference(
        check="expanded features, when max_feature_nodes is below the number of active features",
        theirs="which features are expanded depends on batch_size and update_interval: influences are ranked once for "
        "batch_size * update_interval features, from the rows known by then",
        ours="the set depends on neither; edges are compared between the features that both expanded",
    ),
    "live-generation": Difference(
        check="feature_intervention_generate with freeze_attention=False",
        theirs="token ids of shape (1, P), which its generation needs, are taken for one position: IndexError unless all "
        "interventions are on position 0; for text, the number of positions is that of the tokenizer without BOS",
        ours="ids, batched or not, and text",
    ),
    "rounding": Difference(
        check="active features, pruning masks",
        theirs="a feature within 1e-4 of its threshold, or a node or edge within 1e-3 of the pruning threshold",
        ours="may fall on the other side of it: both engines compute in fp32 and round differently",
    ),
}
