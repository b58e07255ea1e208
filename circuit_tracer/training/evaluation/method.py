"""How the numbers of a report were measured, in sentences; all of them from the evaluation."""

from __future__ import annotations

from typing import Any

from circuit_tracer.training.evaluation import faithfulness, snippets
from circuit_tracer.training.evaluation.replacement import FILTER_PROBABILITY
from circuit_tracer.training.evaluation.results import DICTIONARY, PER_LAYER, RANDOM, Evaluation, ModelItself
from circuit_tracer.training.evaluation.tables import TITLES, number

JSON_NAME = "evaluation.json"


def method(evaluation: Evaluation) -> str:
    """A list in Markdown."""
    lines = [
        *_reconstruction(evaluation),
        *([] if evaluation.model is None else _replacement(evaluation, evaluation.model)),
        *_graphs(evaluation),
        *_intervals(evaluation),
        *_others(evaluation),
    ]
    return "## How it was measured\n\n" + "\n".join(f"- {line}" for line in lines)


def _reconstruction(evaluation: Evaluation) -> list[str]:
    conditions, tokens = evaluation.conditions, evaluation.results[DICTIONARY].reconstruction.tokens
    return [
        *_story(conditions),
        f"Reconstruction on {tokens} held-out tokens ({_plain(conditions['data'])}). NMSE = "
        "Σ‖ŷ − y‖² / Σ‖y − ȳ‖² with the mean and variance of these tokens.",
        f'"Never active" means on none of these {tokens} tokens.',
    ]


def _story(conditions: dict[str, Any]) -> list[str]:
    """What a training run says of itself."""
    lines = []
    if trained := conditions.get("training"):
        lines.append(f"Trained on {trained['tokens']} tokens ({trained['step']} steps): `{trained['configuration']}`.")
        if begun := trained.get("started_from"):
            lines.append(f"Started from {begun['place']}, fingerprint {begun['fingerprint']}.")
        for change in trained.get("changes", []):
            words = ", ".join(f"`{key}` from {old} to {new}" for key, (old, new) in change["changed"].items())
            lines.append(f"Changed after step {change['step']}: {words}.")
    if exported := conditions.get("export"):
        lines.append(
            f"As trained -> as these files: {exported['summary']} (NMSE and L0 on {exported['tokens']} held-out tokens)."
        )
        lines += [exported["readers"]] if exported["readers"] else []
    return lines


def _replacement(evaluation: Evaluation, model: ModelItself) -> list[str]:
    what = (
        "the residual stream at one layer replaced by its reconstruction, one layer at a time, numbers above are means over "
        "layers; all else live"
        if evaluation.spliced_ablations
        else "all MLPs replaced, no error nodes, attention and norms live"
    )
    if not evaluation.spliced_ablations and 0 in evaluation.results[DICTIONARY].reconstruction.features:
        what = what.replace(
            "all MLPs replaced", "MLPs replaced in layers that have transcoders, the others as they are"
        )
    ablated = "the stream at that layer" if evaluation.spliced_ablations else "all MLPs"
    return [
        f"Replacement over {model.predictions} predictions: {what}; position 0 keeps the model's own. The model itself: "
        f"cross-entropy {number(model.cross_entropy)} nats, right on {model.accuracy:.1%}.",
        f"Filtered: the {model.filtered_predictions} predictions where the model is right with probability below "
        f"{FILTER_PROBABILITY}.",
        f"Cross-entropy recovered: 0 is what ablation of {ablated} gives (to zero, to the mean), 1 the model.",
    ]


def _graphs(evaluation: Evaluation) -> list[str]:
    settings, graphs = evaluation.conditions["settings"], evaluation.results[DICTIONARY].graphs
    if not graphs:
        return []
    limit, cut = settings["max_feature_nodes"], sum(graph.held_out for graph in graphs)
    rest = f"{limit} features with a row of their own, the others' mass counted as error" if limit else "all features"
    lines = [
        f"Graph scores: means over {len(graphs)} prompts, {cut} of them of up to {snippets.LENGTH} tokens cut from the "
        f"held-out text where the model is right at {snippets.LEAST_PROBABILITY} or more (rather below {FILTER_PROBABILITY}); "
        f"unpruned graphs, {rest}{_of_random(evaluation, len(graphs))}.",
        "Replacement score: share of what reaches the output that begins in tokens and not in errors. Sizes of edges are "
        "added, so features whose effects cancel raise it: it says how much of a graph has names, and not which of two "
        "dictionaries is nearer to the model.",
        "Completeness score: share of what enters a node that is no error, averaged by influence. The same holds for it.",
    ]
    if settings["faithfulness"]:
        lines += [
            f"Edges against ablation: {faithfulness.SOURCES} features of each graph are taken out of the model one by one; "
            f"rank correlation of up to {faithfulness.EDGES} of their edges to features, and of those to the first target, "
            "with what the target lost. It says whether edges order effects in the real model; of features that hardly do "
            "anything they do too, so look at what the features move. A random dictionary can score high here, as its graphs "
            "are right about its own features: compare with the column beside.",
            f"Groups against ablation: {2 * faithfulness.GROUPS + 1} groups of {faithfulness.GROUP} features; rank correlation "
            "of the change of the first target's logit that the graph predicts along all its paths with the one measured. It "
            "says whether what a graph calls a cause is one, knock-on effects included.",
            f"Logit moved: by how much it moves either way without the graph's {faithfulness.GROUP} most influential features, "
            "and without as many random active ones.",
        ]
    return lines


def _of_random(evaluation: Evaluation, prompts: int) -> str:
    random = evaluation.results.get(RANDOM)
    return (
        f"; of the random dictionary the first {len(random.graphs)}" if random and len(random.graphs) < prompts else ""
    )


def _intervals(evaluation: Evaluation) -> list[str]:
    units = len(evaluation.results[DICTIONARY].reconstruction.estimates["mean_nmse"].without)
    if units < 2:
        return ["No intervals over text: it came as activations, or as one sequence."]
    return [
        f"a ± b: 95 % intervals, jackknife over {units} sequences or groups of such (graphs: over prompts), since tokens of "
        "one text are alike. They say how much other text of the same kind would change a number, not another seed of training."
    ]


def _others(evaluation: Evaluation) -> list[str]:
    conditions, settings = evaluation.conditions, evaluation.conditions["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    lines = []
    if RANDOM in evaluation.results:
        lines.append(
            f"Random dictionary: equal shape, random rows (seed {settings['seed']}); threshold, scale and bias of each layer "
            "fitted to the same L0 and by least squares."
        )
    lines += [
        f"{TITLES[name][0].upper()}{TITLES[name][1:]}: {one.what}."
        for name, one in evaluation.results.items()
        if name == PER_LAYER
    ]
    lines.append(
        f"Model in {conditions['model_dtype']}, dictionary in {conditions['dictionary_dtype']}, on {conditions['device']}; "
        f"{versions}. All settings and numbers: `{JSON_NAME}`."
    )
    return lines


def _plain(data: dict[str, Any]) -> str:
    """What was read, in words."""
    if "activations_given" in data:
        return "given as activations"
    left_out = data["norm_outliers_left_out"]
    return (
        f"{data['sequences']} sequences of {data['tokens_read']} tokens in all; position 0 and special tokens do not count, "
        f"{left_out} norm outliers left out"
    )
