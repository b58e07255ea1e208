"""Four doubts: what would a story say if its labels, its dictionary or its groups were arbitrary, or the model wrong?

    python -m benchmarks.explanations.doubts [--prompts N] [--results FILE]

| doubt | what is changed |
|---|---|
| permuted labels | each feature has the label of another one of its layer, for grouping and for names |
| random dictionary | features are random directions, as many active, scales fitted to the whole world; labelled as ours are |
| random groups | as many groups of the same sizes, their members drawn at random from the kept features |
| a prompt that the model gets wrong | nothing: what the model says is not true |

For each: what of the known truth its groups still say, and what becomes of the story's tests. The tables and stories of
`docs/concepts/doubts.md` are written from the record by `python -m benchmarks.readme`.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.explanations.explained import OF_FEATURES, Explained, Labels, found
from benchmarks.explanations.swaps import asks_the_same, swaps
from benchmarks.explanations.truth import concept_of, named
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.naming.names import active_members, output_tokens
from circuit_tracer.circuits.naming.promoted import promoted_by
from circuit_tracer.circuits.story import Contrast, Story, tell
from circuit_tracer.circuits.supernodes import Grouping, Supernode
from circuit_tracer.demo import MODEL, load_labels, world
from circuit_tracer.demo.contexts import collect
from circuit_tracer.demo.labels import label_features
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.demo.show import load_demo, named_groups
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.transcoders import CrossLayerTranscoder
from circuit_tracer.transcoders.random_dictionary import random_baseline

PROMPTS = 20
RANDOM_GROUPS = 10
SHOWN = world.two_hop(world.entity("Texas"), "Dallas", "capital")
RELATIONS_SAID = {(True, each) for each in (*world.RELATIONS["country"], "place", "antonym", "successor")}
WRONG = (  # prompts of the world's words to which it has no answer; the model gives one all the same
    "the capital of the country containing Dallas is",
    "the language of the state containing Dallas is",
)


def measure(count: int = PROMPTS) -> dict[str, Any]:
    """By doubt: numbers over some prompts, and the story of one."""
    model, labels = load_demo(), load_labels()
    statements = [SHOWN, *random.Random(1).sample(world.seen_two_hops(), count - 1)]
    made_up, of_random = random_dictionary(model)

    def permuted(graph: Graph, model: Traceable, _: Labels) -> Grouping:
        return named_groups(graph, model, permuted_labels(labels))

    results = {
        "as it is": _answers(statements, model, labels, named_groups),
        "permuted labels": _answers(statements, model, labels, permuted),
        "random dictionary": _answers(statements, made_up, of_random, named_groups),
        "random groups": _answers(statements, model, labels, random_groups),
    }
    return {"doubts": results, "wrong prompts": [_wrong(prompt, model, labels) for prompt in WRONG]}


def permuted_labels(labels: Labels, seed: int = 0) -> Labels:
    """Each feature with the label of another one of its layer."""
    by_layer: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for place in sorted(labels):
        by_layer[place[0]].append(place)
    chance = random.Random(seed)
    found: dict[tuple[int, int], str] = {}
    for places in by_layer.values():
        others = chance.sample(places, len(places))
        found |= {place: labels[other] for place, other in zip(places, others, strict=True)}
    return found


def random_groups(graph: Graph, model: Traceable, labels: Labels) -> Grouping:
    """The sizes and roles of the package's groups of features; the members are drawn anew."""
    grouping = named_groups(graph, model, labels)
    of_features = [group for group in grouping if group.role in OF_FEATURES]
    nodes = [node for group in of_features for node in group.members]
    drawn = iter(random.Random(0).sample(nodes, len(nodes)))
    order = {node: number for number, node in enumerate(graph.nodes.ids())}

    def redrawn(group: Supernode) -> Supernode:
        members = sorted((next(drawn) for _ in group.members), key=order.__getitem__)
        return Supernode("", group.role, tuple(members))

    shuffled = tuple(redrawn(group) if group.role in OF_FEATURES else group for group in grouping)
    return name_groups(graph, Grouping(shuffled), labels=labels, model=model)


def random_dictionary(model: Traceable) -> tuple[Traceable, Labels]:
    """The demo's model with a random dictionary, and what its features fire on in the world."""
    language_model, tokenizer = load_model(MODEL)
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    data = collect(language_model, encode_statements(tokenizer, world.transcoder_training()), stop)
    dictionary = random_baseline(model.transcoders, (data.x_LND.transpose(0, 1), data.y_LND.transpose(0, 1)), seed=0)
    written = label_features(language_model, tokenizer, cast(CrossLayerTranscoder, dictionary))
    labels = {(int(layer), int(feature)): text for layer, row in written.items() for feature, text in row.items()}
    return Traceable(model.parts, dictionary, model.tokenizer), labels


def _answers(
    statements: Sequence[world.Statement],
    model: Traceable,
    labels: Labels,
    group: Callable[[Graph, Traceable, Labels], Grouping],
) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ReconstructionWarning)
        cases = [Explained.of(statement, model, labels, group) for statement in statements]
    stories = [_story(case, cases, model) for case in cases]
    shares = found(cases)
    shares["influence from errors"] = _mean([1 - graph_scores(case.graph).replacement for case in cases])
    shares["a warning that the dictionary does not fit"] = _mean(
        [1.0 for each in warned if issubclass(each.category, ReconstructionWarning)], len(cases)
    )
    shares["say-groups that promote what they are called"] = _promoted(cases, model)
    turned = swaps(cases, cases, model)
    return {
        "found": shares,
        "swaps": {name: turned[name] for name in ("the answer turns, 1x", "random groups, 1x")},
        "sentences": _sentences(stories),
        "story": [*stories[0].lines()],
    }


def _promoted(cases: Sequence[Explained], model: Traceable) -> float:
    """Of the groups named after a token to say, those among whose most promoted tokens it is."""
    hits = []
    for case in cases:
        for group, members in zip(case.grouping, active_members(case.graph, case.grouping), strict=True):
            said = named(group.name)[0].removeprefix("say ").rpartition(": ")[2]
            if group.name.startswith("say ") and concept_of(f"say {said}") not in RELATIONS_SAID:
                hits.append(float(said in promoted_by(members, model, output_tokens(case.graph))))
    return _mean(hits)


def _story(case: Explained, others: Sequence[Explained], model: Traceable) -> Story:
    """With another prompt beside, if one asks the same."""
    beside = next((Contrast(other.graph, other.grouping) for other in others if asks_the_same(other, case)), None)
    return tell(case.graph, model, case.grouping, contrasts=[beside] if beside else [], random_groups=RANDOM_GROUPS)


def _sentences(stories: Sequence[Story]) -> dict[str, float]:
    """Of the tested sentences of a kind, the share that hold."""
    held: defaultdict[str, list[bool]] = defaultdict(list)
    for story in stories:
        for sentence in story.sentences:
            if sentence.evidence is not None:
                held[sentence.kind].append(sentence.evidence.holds)
    return {kind: _mean([float(hold) for hold in holds]) for kind, holds in held.items()}


def _wrong(prompt: str, model: Traceable, labels: Labels) -> dict[str, Any]:
    statement = world.Statement(prompt, "", "Dallas", "capital", 2, "Texas", "Dallas")
    case = Explained.of(statement, model, labels)
    story = tell(case.graph, model, case.grouping, random_groups=RANDOM_GROUPS)
    return {
        "prompt": prompt,
        "says": case.graph.targets.label[0].strip(),
        "probability": round(float(case.graph.targets.weight[0]), 4),
        "the entity's group is found": bool(case.entity_groups),
        "sentences": _sentences([story]),
        "story": [*story.lines()],
    }


def _mean(values: Sequence[float], count: int | None = None) -> float:
    return round(sum(values) / max(1, len(values) if count is None else count), 4)


def lines(measured: dict[str, Any]) -> list[str]:
    """One line a number, one column a doubt; then the stories."""
    doubts = measured["doubts"]
    names = {
        f"{table}: {name}": None
        for each in doubts.values()
        for table in ("found", "swaps", "sentences")
        for name in each[table]
    }
    written = [f"{'':56}" + "".join(f"{doubt:>20}" for doubt in doubts)]
    for title in names:
        table, name = title.split(": ", 1)
        values = [each[table].get(name) for each in doubts.values()]
        written.append(f"{title:56}" + "".join(f"{'-' if value is None else f'{value:.3g}':>20}" for value in values))
    for doubt, each in doubts.items():
        written += ["", f"== {doubt}", *each["story"]]
    for each in measured["wrong prompts"]:
        written += ["", f"== wrong: {each['prompt']} {each['says']}", *each["story"]]
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--results", type=Path, default=RESULTS / "doubts.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, results = time.perf_counter(), describe()
    results["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("circuit-tracing", "torch", "transformers")
    }
    results |= measure(args.prompts)
    results["seconds"] = round(time.perf_counter() - start, 1)
    write_results(args.results, results)
    print("\n".join(lines(results)), f"\n{results['seconds']} s")


if __name__ == "__main__":
    main()
