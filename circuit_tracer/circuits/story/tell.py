"""The story of a grouped graph: sentences made from its numbers, each tested by the intervention that could refute it.

grouping = name_groups(graph, graph.supernodes(model), labels=labels, model=model)
story = tell(graph, model, grouping)
print(story.markdown())
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.story import words
from circuit_tracer.circuits.story.contrast import Contrast, contrasted
from circuit_tracer.circuits.story.evidence import CHAINS, Tested
from circuit_tracer.circuits.story.rephrase import rephrased
from circuit_tracer.circuits.story.scene import LEAST_INFLUENCE, Scene
from circuit_tracer.circuits.story.story import Sentence, Story
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.graph.words import is_of_neurons
from circuit_tracer.interventions.validation.groups import RANDOM_GROUPS, measure_groups
from circuit_tracer.interventions.validation.target_reads import MEASURES
from circuit_tracer.models.surroundings import fitting_threads
from circuit_tracer.progress import doing


@typed
@doing("telling")
def tell(
    graph: Graph,
    model: Traceable | None,
    grouping: Grouping,
    *,
    contrasts: Sequence[Contrast] = (),
    wording: ChatModel | None = None,
    random_groups: int = RANDOM_GROUPS,
    seed: int = 0,
    batch_size: int = 16,
) -> Story:
    """The story of a graph with named groups; it is also kept as ``graph.story``, which files and pages carry.

    Deterministic for a seed. Cost with a model: that of `measure_groups`, and two passes a swap.

    Args:
        graph: The attribution graph.
        model: The one that the graph was traced with; without it no sentence is tested.
        grouping: Its groups, with names (`name_groups`).
        contrasts: Graphs of other prompts, whose groups are put in the place of this one's.
        wording: A language model that may reword sentences, and nothing else (rephrase.py).
        random_groups: Draws, for each group, of as many other features, beside which its effect is seen.
        seed: Of the random groups.
        batch_size: How many runs share a pass.

    Returns:
        The story, whose sentences carry what tested them.

    Raises:
        InputError: For groups that the graph does not have and for contrasts of another length.
        CompatibilityError: For a graph of another model or dictionary.

    Examples:
        >>> from circuit_tracer.circuits.naming import name_groups
        >>> from circuit_tracer.circuits.story import tell
        >>> from circuit_tracer.demo import load_labels
        >>> named = name_groups(graph, graph.supernodes(), labels=load_labels())
        >>> tell(graph, model, named, random_groups=1).sentences[0].text
        'After “the capital of the state containing Dallas is” the model says “Austin” with 99.7 %.'
    """
    started = time.perf_counter()
    scene = Scene(graph, grouping)
    with fitting_threads(graph.cfg.d_model):
        tested = None if model is None else _test(scene, model, random_groups, seed, batch_size)
        sentences = [*_sentences(scene, tested)]
        for contrast in contrasts:
            sentences += contrasted(scene, contrast, model)
    target = scene.titles[scene.answer]
    story = Story(
        title=f"Why {target}, on “{scene.prompt}”",
        prompt=graph.input_string,
        target=target,
        sentences=tuple(sentences),
        left_out=tuple(_left_out(scene)),
        seconds=round(time.perf_counter() - started, 2),
    )
    if wording is not None:
        story = rephrased(story, wording, scene.titles)
    graph.story = story.to_json()
    return story


def _test(scene: Scene, model: Traceable, random_groups: int, seed: int, batch_size: int) -> Tested:
    read = {link.source for place in [*scene.spoken, scene.answer] for link in scene.sources(place)}
    groups = {scene.titles[place]: scene.ids([place]) for place in (*scene.spoken, *sorted(read - {*scene.spoken}))}
    chained = sorted({place for way in scene.chains for place in way} & {*scene.spoken})
    if chained:
        groups[CHAINS] = scene.ids(chained)
    test = measure_groups(scene.graph, model, groups, random_groups=random_groups, seed=seed, batch_size=batch_size)
    return Tested(scene, test, MEASURES[scene.graph.targets.kind[scene.first_target]])


def _sentences(scene: Scene, tested: Tested | None) -> Iterator[Sentence]:
    """From the answer to what leads to it, and then group by group from the input up."""
    chained = [place for way in scene.chains for place in way]
    yield Sentence("answer", words.answer(scene), scene.ids([scene.answer]), tested.answer() if tested else None)
    yield Sentence("chains", words.chains(scene), scene.ids(chained), tested.chains() if tested else None)
    for place in [*scene.spoken, scene.answer]:
        ids = scene.ids([place, *(link.source for link in scene.sources(place))])
        yield Sentence("reads", words.reads(scene, place), ids, tested.reads(place) if tested else None)
        if place != scene.answer:
            worth = tested.carries(place) if tested else None
            yield Sentence("carries", words.carries(scene, place), scene.ids([place]), worth)


def _left_out(scene: Scene) -> Iterator[str]:
    if scene.silent:
        least = words.percent(LEAST_INFLUENCE, 0)
        yield f"Groups that are not spoken of: {scene.silent}, which pass on less than {least} of the influence each."
    explained = graph_scores(scene.graph).replacement
    what = "What other neurons write" if is_of_neurons(scene.graph) else "What the dictionary leaves out (errors)"
    yield f"{what} brings {words.percent(1 - explained, 0)} of the influence."
    yield (
        "A share is of the sum of a group's absolute inputs in the whole graph, with attention and norms as on the prompt; "
        "why attention looks where it does is not told."
    )
