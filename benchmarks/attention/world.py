"""Which head takes the intermediate entity of a two-hop question to the answer, and does the answer need it?

    python -m benchmarks.attention.world [--every N] [--results attention_world.json]

Embedded world: held-out questions, and some of those of training and of reserved cities. Each is traced to its right
answer, and of the entity's features at the city (`probes.entity_features`) the one with the strongest edge into the answer's
logit is taken. Attention alone brings it there, so that edge, split over last heads, names a head: the strongest. Counted are
- the head, and whether the strongest edge from the entity to any node at the last position names the same one;
- answers that change when the head is taken out in the live model, beside the other heads of its layer and all others: set
  to 0, to its mean over the prompt, and to its mean over other questions, at all positions but the first;
- what the head at the last position sees in the city rather than in the rest (`explain_score`): is the strongest feature of
  the key's side one of the entity's? Beside it the same for another entity of its kind, drawn at random.

Denominators are the prompts that got so far. Nothing is reported unless sums of heads and of marginals are what they are of to
1e-5, and the head's part of the edge is what measuring it in the frozen network gives, to 1e-4 (of every tenth question). The
exit status is 1 if ``AIMS`` are missed: then the model has no such story.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.attention.heads import Head, head_name, heads_of
from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.faithfulness.graphs import selective_nodes
from benchmarks.faithfulness.ground_truth import groups
from circuit_tracer.attention import EdgeExplanation, explain_edge, explain_score
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.demo.dictionary import load_dictionary
from circuit_tracer.demo.probes import Features, entity_features
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.demo.show import load_demo
from circuit_tracer.demo.world import Statement
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.interventions import CleanRun, HeadEdit, Loading, Semantics, apply_each, measure_loadings
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.run import ModelRun

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

TAKEN = {"held out": 1, "trained": 12, "reserved cities": 4}  # every n-th of each group
REFERENCES = 40  # every n-th question of training: what the mean over other questions is of
LIVE = Semantics("direct", freeze_attention=False)
SUMS, MEASURED = 1e-5, 1e-4
AIMS = {"prompts": 200, "answers changed by the named head": 0.5, "answers changed by other heads of its layer": 0.25}


@dataclass
class Story:
    """What was found about one question, as far as it goes. positions: of the entity's active features, "city", "elsewhere"."""

    group: str
    right: bool = False
    positions: list[str] = field(default_factory=list)
    head: Head | None = None
    share: float = 0.0  # of what all last heads of the edge carry, by size
    same_elsewhere: bool = False
    attention: float = 0.0  # the head's, from the last position to the city
    changed: dict[str, list[Head]] = field(
        default_factory=dict
    )  # by how heads are taken out: those that change the answer
    top_kind: str = ""  # of the strongest source of the key's side
    top_own: bool = False
    top_other: bool = False
    top_for: bool = False  # whether it speaks for the city
    top_at_city: bool = False
    own_at_city: float = 0.0  # of the features there that the head can see, the entity's


def story(
    model: ReplacementModel,
    features: Mapping[str, Features],
    one: Statement,
    group: str,
    usual_LHd: Tensor,
    other: str,
    check: bool,
) -> Story:
    """Follow the entity of a question. SystemExit where an identity fails."""
    found = Story(group)
    ids = model.ensure_tokenized(one.prompt)
    answer = int(model.tokenizer.vocab[one.answer])
    clean = CleanRun(model, ids)
    found.right = int(logits_at(model.parts, clean.final[-1:]).argmax()) == answer
    if not found.right:
        return found
    graph = attribute(ids, model, attribution_targets=torch.tensor([answer]))
    city = ids.tolist().index(int(model.tokenizer.vocab[one.subject]))
    own = selective_nodes(graph, features[str(one.entity)]).nonzero().flatten()
    at_city = graph.nodes.position[own] == city
    found.positions = ["city" if each else "elsewhere" for each in at_city.tolist()]
    edges = strongest_edges(graph, own[at_city])
    if not edges:
        return found
    explained = {pair: explain_edge(graph, *pair, model, paths=0) for pair in edges}
    edge, anywhere = (explained[pair] for pair in edges)
    found.head, found.share = named(edge)
    found.same_elsewhere = named(anywhere)[0] == found.head
    if check:
        require_measured(graph, model, edge, found.head)
    found.changed = changed_answers(model, clean, usual_LHd)
    score = explain_score(graph, model, *found.head, graph.n_pos - 1, city, "rest", pairs=False)
    found.attention = float(score.pattern[city])
    strongest = score.key_side.strongest(len(score.key_side.sources))
    found.top_kind = strongest[0].kind
    top = next(each for each in strongest if each.kind == "feature")
    layer, feature, position = map(int, top.id.split("_"))
    found.top_own, found.top_other = ((layer, feature) in features[name] for name in (str(one.entity), other))
    found.top_for, found.top_at_city = top.weight > 0, position == city
    seen = (graph.nodes.position == city) & (graph.nodes.layer < found.head[0]) & (graph.nodes.kind == NodeKind.FEATURE)
    found.own_at_city = float(selective_nodes(graph, features[str(one.entity)])[seen].float().mean())
    residual = max(edge.residual, anywhere.residual, score.residual)
    if not residual <= SUMS:
        raise SystemExit(f"nothing reported: on {one.prompt!r} sums miss what they are of by {residual:.1e}")
    return found


def strongest_edges(graph: Graph, sources: Tensor) -> list[tuple[int, int]]:
    """(source, target): the strongest edge into the answer, and into any node at the last position; none without one."""
    edges, last = graph.edges, graph.n_pos - 1
    from_own = torch.isin(edges.source, sources)
    reached = (from_own & (edges.target == graph.nodes.layout.target_start), graph.nodes.position[edges.target] == last)
    found = []
    for chosen in (reached[0], from_own & reached[1]):
        if not bool(chosen.any()):
            return []
        best = int(edges.weight.abs().where(chosen, -1).argmax())
        found.append((int(edges.source[best]), int(edges.target[best])))
    return found


def named(edge: EdgeExplanation) -> tuple[Head, float]:
    """The strongest last head, and its share of what all carry."""
    (best,) = edge.strongest(1)["last"]
    return (best.layer, best.head), abs(best.weight) / float(edge.last.abs().sum())


def require_measured(graph: Graph, model: ReplacementModel, edge: EdgeExplanation, head: Head) -> None:
    """SystemExit unless what runs through the head is what the frozen network loses with it."""
    predicted = Loading(edge.source, edge.target, *head, "last", float(edge.last[head]))
    measured = measure_loadings(graph, model, [predicted]).rows.measured["constrained"][0]
    # measured is the difference of two sums in float32 of all that goes into the target
    into = float(graph.edges.weight[graph.edges.target == edge.target].abs().sum())
    limit = MEASURED * abs(edge.weight) + torch.finfo(torch.float32).eps * into
    if measured is None or not abs(measured - predicted.predicted) <= limit:
        raise SystemExit(f"nothing reported: {predicted} is {measured} when it is measured in the frozen network")


def changed_answers(model: ReplacementModel, clean: CleanRun, usual_LHd: Tensor) -> dict[str, list[Head]]:
    """By how a head is taken out, the heads without which the most likely token is another one."""
    ways: dict[str, Callable[[Head], dict[str, Any]]] = {
        "zero": lambda head: {"action": "zero"},
        "mean over the prompt": lambda head: {"action": "mean"},
        "mean over other questions": lambda head: {"action": "patch", "value": usual_LHd[head]},
    }
    experiments = [(way, head) for way in ways for head in heads_of(model.parts)]
    edits = [[HeadEdit(*head, at="prompt", **ways[way](head))] for way, head in experiments]
    outcomes = apply_each(model, clean, edits, LIVE, watch="none", batch_size=len(edits))
    found: dict[str, list[Head]] = {way: [] for way in ways}
    for (way, head), outcome in zip(experiments, outcomes, strict=True):
        if outcome.changed_top:
            found[way].append(head)
    return found


def usual_outputs(model: ReplacementModel, prompts: Sequence[str]) -> Tensor:
    """(L, H, d): what heads give on average, over all positions of prompts but the first."""
    given: list[list[Tensor]] = [[] for _ in model.parts.layers]
    for prompt in prompts:
        ModelRun(model.parts, {"attn.hook_z": lambda layer, z_BPN: given[layer].append(z_BPN[0, 1:])})(
            model.ensure_tokenized(prompt)
        )
    mean_LN = torch.stack([torch.cat(each).mean(0) for each in given])
    return mean_LN.view(len(given), model.parts.config.n_heads, -1)


def measure(every: int = 1) -> list[Story]:
    """The stories of all questions, or of every n-th."""
    plain, tokenizer = load_model(MODEL)
    features = entity_features(plain, tokenizer, load_dictionary(TRANSCODER))
    model, chance = load_demo(), random.Random(0)
    usual_LHd = usual_outputs(model, [one.prompt for one in world.seen_two_hops()[::REFERENCES]])
    found: list[Story] = []
    by_group = groups()
    for group, step in TAKEN.items():
        for number, one in enumerate(by_group[group][:: step * every]):
            kind = world.entity(str(one.entity)).kind
            other = chance.choice([e.name for e in world.entities() if e.kind == kind and e.name != one.entity])
            found.append(story(model, features, one, group, usual_LHd, other, check=number % 10 == 0))
    return found


def summary(stories: Sequence[Story], heads: Iterable[Head]) -> dict[str, Any]:
    """Counts; `of` is the denominator of those that follow it."""
    right = [one for one in stories if one.right]
    followed = [one for one in right if one.head is not None]
    active = [one for one in right if one.positions]
    return {
        "prompts": len(stories),
        "answered right": len(right),
        "with an active feature of the entity": len(active),
        "positions of these features": dict(Counter(at for one in right for at in one.positions)),
        "with an edge from the city to the answer": len(followed),
        "heads": {
            "of": len(followed),
            "named": {
                head_name(head): count for head, count in Counter(one.head for one in followed).most_common() if head
            },
            "same head at the strongest edge to the last position": sum(one.same_elsewhere for one in followed),
            "median share of the edge": _median(one.share for one in followed),
            "median attention to the city": _median(one.attention for one in followed),
        },
        "answers changed": {
            way: _ablated(followed, way, list(heads)) for way in (followed[0].changed if followed else ())
        },
        "key side": {
            "of": len(followed),
            "strongest feature is the entity's": sum(one.top_own for one in followed),
            "and speaks for the city": sum(one.top_own and one.top_for for one in followed),
            "strongest feature is at the city": sum(one.top_at_city for one in followed),
            "strongest feature is another entity's": sum(one.top_other for one in followed),
            "of the features there that the head can see, the entity's": _mean(one.own_at_city for one in followed),
            "kind of the strongest source": dict(Counter(one.top_kind for one in followed)),
        },
    }


def _ablated(followed: Sequence[Story], way: str, heads: Sequence[Head]) -> dict[str, Any]:
    """Answers that change: without the named head; without another of its layer, a mean over these; and by head."""
    beside = [
        statistics.mean(head in one.changed[way] for head in heads if head != one.head and head[0] == one.head[0])
        for one in followed
        if one.head is not None
    ]
    return {
        "of": len(followed),
        "named head": sum(one.head in one.changed[way] for one in followed),
        "another head of its layer": round(sum(beside), 2),
        "by head": {head_name(head): sum(head in one.changed[way] for one in followed) for head in heads},
    }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(statistics.mean(listed), 4) if listed else None


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(statistics.median(listed), 4) if listed else None


def missed(found: dict[str, Any]) -> list[str]:
    """Aims that are not reached: there is no such story in this model, or too few prompts."""
    lacking = [] if found["prompts"] >= AIMS["prompts"] else ["prompts"]
    ablated = found["answers changed"].get("mean over the prompt")
    if ablated is None:
        return [*lacking, "no edge from the entity to the answer runs through attention"]
    if ablated["named head"] < AIMS["answers changed by the named head"] * ablated["of"]:
        lacking.append("answers changed by the named head")
    if ablated["another head of its layer"] > AIMS["answers changed by other heads of its layer"] * ablated["of"]:
        lacking.append("answers changed by other heads of its layer")
    return lacking


def lines(found: dict[str, Any]) -> list[str]:
    """What was counted, in a few lines."""
    heads = found["heads"]
    counted = ("prompts", "answered right", "with an active feature of the entity", "positions of these features")
    written = [", ".join(f"{name}: {found[name]}" for name in counted)]
    written.append(f"edge from the city to the answer: {heads}")
    for way, row in found["answers changed"].items():
        written.append(
            f"{way:26} named head changes {row['named head']} of {row['of']}, another of its layer "
            f"{row['another head of its layer']}; by head: {row['by head']}"
        )
    return [*written, f"key side: {found['key side']}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th question, for a try")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, start = describe(versions=versions(), threads=args.threads), time.perf_counter()
    stories = measure(args.every)
    heads = heads_of(load_demo().parts)
    results |= summary(stories, heads)
    results["groups"] = {
        group: summary([one for one in stories if one.group == group], heads)
        for group in dict.fromkeys(one.group for one in stories)
    }
    results["seconds"] = round(time.perf_counter() - start, 1)
    print("\n".join(lines(results)))
    for group, found in results["groups"].items():
        print("\n".join(["", f"{group}:", *lines(found)]))
    if args.results:
        write_results(RESULTS / args.results, results)
    if args.every == 1 and (names := missed(results)):
        raise SystemExit(f"missed: {', '.join(names)}")


if __name__ == "__main__":
    main()
