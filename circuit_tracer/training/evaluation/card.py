"""The report of an evaluation: evaluation.json, a model card, pictures. Equal evaluations give equal files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.training.evaluation.evaluate import DICTIONARY, MEAN, PER_LAYER, RANDOM, ZERO
from circuit_tracer.training.evaluation.pictures import draw
from circuit_tracer.training.evaluation.replacement import FILTER_PROBABILITY
from circuit_tracer.training.evaluation.results import DictionaryResult, Evaluation, Replacement, mean_scores

JSON_NAME, CARD_NAME = "evaluation.json", "README.md"
TITLES = {DICTIONARY: "this dictionary", RANDOM: "random dictionary", PER_LAYER: "per-layer dictionary"}
ABLATIONS = {ZERO: "MLPs zero", MEAN: "MLPs mean"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_report(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write evaluation.json, README.md and, where matplotlib is installed, pictures; the paths, in that order.

    Without matplotlib the card says that there are no pictures. Raises InputError for a folder that cannot be written into,
    ResourceError when the disk is full.
    """
    folder = require_writable_folder(folder)
    pictures: list[Path] = []
    if find_spec("matplotlib") is not None:
        pictures = draw(evaluation, folder)
    text = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in ((JSON_NAME, text), (CARD_NAME, model_card(evaluation, [path.name for path in pictures]))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [folder / JSON_NAME, folder / CARD_NAME, *pictures]


def model_card(evaluation: Evaluation, pictures: Iterable[str] = ()) -> str:
    """Markdown, all of its numbers from ``evaluation``; ``pictures`` are file names beside it."""
    shown = list(pictures)
    sections = [
        _head(evaluation),
        "## Results\n\n" + summary_table(evaluation),
        "## By layer\n\n" + _layer_table(evaluation),
        *([_pictures(shown)] if shown else ["No pictures: matplotlib was not installed when this page was written."]),
        *([_graph_table(evaluation)] if _dictionary(evaluation).graphs else []),
        _method(evaluation),
    ]
    return _front_matter(evaluation) + "\n\n".join(sections) + "\n"


def summary_table(evaluation: Evaluation) -> str:
    """One Markdown table: a row a number, a column a dictionary or ablation."""
    results, ablations = evaluation.results, evaluation.ablations
    rows = [
        _row("NMSE, mean over layers", results, lambda one: _number(one.reconstruction.mean_nmse), len(ablations)),
        _row("active features a token (L0), all layers", results, _total_l0, len(ablations)),
        _row("features never active", results, lambda one: _share(one.reconstruction.dead_share), len(ablations)),
    ]
    if evaluation.model is not None:
        everything = [result.replacement for result in results.values()] + list(ablations.values())
        rows += [
            _cells("cross-entropy, all MLPs replaced", everything, lambda one: _number(one.cross_entropy)),
            _cells("KL(model \\|\\| replaced)", everything, lambda one: _number(one.kl)),
            _cells("top-1 agreement", everything, lambda one: _share(one.top1)),
            _cells("top-1 agreement, filtered", everything, lambda one: _share(one.top1_filtered)),
            _cells("cross-entropy recovered", everything, lambda one: _share(one.ce_recovered)),
        ]
    if _dictionary(evaluation).graphs:
        for name in ("replacement", "completeness"):
            rows.append(_row(f"graph {name} score", results, _mean_score(name), len(ablations)))
    titles = [TITLES[name] for name in results] + [ABLATIONS[name] for name in ablations]
    return _table(["", *titles], rows)


def _front_matter(evaluation: Evaluation) -> str:
    what, model = _dictionary(evaluation).what, evaluation.conditions["model"]
    kind = what.split(",")[0].removesuffix("s").replace(" ", "-")
    lines = ["---", "library_name: circuit-tracer", "tags:", "- circuit-tracer", "- interpretability", f"- {kind}"]
    if _HUB_NAME.fullmatch(model):
        lines.append(f"base_model: {model}")
    return "\n".join([*lines, "---", "", ""])


def _head(evaluation: Evaluation) -> str:
    conditions = evaluation.conditions
    model, transcoders = conditions["model"], conditions.get("transcoders", "FOLDER")
    kind, _, rest = _dictionary(evaluation).what.partition(", ")
    return (
        f"# {kind[0].upper()}{kind[1:]} for {model}\n\n{kind[0].upper()}{kind[1:]}, {rest}.\n\n"
        f"```\ncircuit-tracer attribute -m {model} -t {transcoders} -p 'The capital of France is' -o graph.safetensors\n```"
    )


def _layer_table(evaluation: Evaluation) -> str:
    found = _dictionary(evaluation).reconstruction
    others = {name: one.reconstruction for name, one in evaluation.results.items() if name != DICTIONARY}
    titles = ["layer", "NMSE", "L0", "never active", "highest density"]
    titles += [f"{column}, {TITLES[name]}" for name in others for column in ("NMSE", "L0")]
    rows = []
    for index, layer in enumerate(evaluation.conditions["layers"]):
        never = f"{found.never_active[index]} of {found.features[index]}"
        row = [
            str(layer),
            _number(found.nmse[index]),
            f"{found.l0[index]:.2f}",
            never,
            _share(found.max_density[index]),
        ]
        for other in others.values():
            row += [_number(other.nmse[index]), f"{other.l0[index]:.2f}"]
        rows.append(row)
    return _table(titles, rows)


def _pictures(names: list[str]) -> str:
    return "\n".join(f"![{Path(name).stem}]({name})" for name in names)


def _graph_table(evaluation: Evaluation) -> str:
    rows = []
    for number, graph in enumerate(_dictionary(evaluation).graphs):
        cells = [graph.prompt.replace("|", "\\|").replace("\n", " ")]
        for result in evaluation.results.values():
            one = result.graphs[number]
            cells += [_number(one.replacement), _number(one.completeness)]
        rows.append(cells)
    titles = ["prompt"]
    for name in evaluation.results:
        titles += [f"replacement, {TITLES[name]}", f"completeness, {TITLES[name]}"]
    problems = [
        f"- {TITLES[name]}, {graph.prompt!r}: {graph.problem}"
        for name, result in evaluation.results.items()
        for graph in result.graphs
        if graph.problem is not None
    ]
    notes = "\n\nNot traced:\n" + "\n".join(problems) if problems else ""
    return f"## Graphs\n\n{_table(titles, rows)}{notes}"


def _method(evaluation: Evaluation) -> str:
    conditions, model = evaluation.conditions, evaluation.model
    found, data, settings = _dictionary(evaluation).reconstruction, conditions["data"], conditions["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in conditions["versions"].items())
    lines = ["## How it was measured\n"]
    if trained := conditions.get("training"):
        lines.append(
            f"- Trained on {trained['tokens']} tokens ({trained['step']} steps): `{trained['configuration']}`."
        )
        if begun := trained.get("started_from"):
            lines.append(f"- Started from {begun['place']}, fingerprint {begun['fingerprint']}.")
        for change in trained.get("changes", []):
            words = ", ".join(f"`{key}` from {old} to {new}" for key, (old, new) in change["changed"].items())
            lines.append(f"- Changed after step {change['step']}: {words}.")
    if exported := conditions.get("export"):
        lines.append(
            f"- As trained -> as these files: {exported['summary']} (NMSE and L0 on {exported['tokens']} held-out tokens)."
        )
        lines += [f"- {exported['readers']}"] if exported["readers"] else []
    lines += [
        f"- Reconstruction on {found.tokens} held-out tokens ({_plain(data)}); position 0 and special tokens do not count. "
        "NMSE = Σ‖ŷ − y‖² / Σ‖y − ȳ‖² with the mean and variance of these tokens.",
        f'- "Never active" means on none of these {found.tokens} tokens.',
    ]
    if model is not None:
        lines += [
            f"- Replacement over {model.predictions} predictions: all MLPs replaced, no error nodes, attention and norms live; "
            "position 0 keeps the model's outputs. The model itself: cross-entropy "
            f"{_number(model.cross_entropy)} nats, right on {_share(model.accuracy)}.",
            f"- Filtered: the {model.filtered_predictions} predictions where the model is right with probability below "
            f"{FILTER_PROBABILITY}.",
            "- Cross-entropy recovered: 0 is what zero ablation of all MLPs gives, 1 the model.",
        ]
    if _dictionary(evaluation).graphs:
        limit = settings["max_feature_nodes"]
        rest = (
            f"{limit} features with a row of their own, the others' mass counted as error" if limit else "all features"
        )
        lines.append(f"- Graph scores: means over the prompts above, unpruned graphs, {rest}.")
    if RANDOM in evaluation.results:
        lines.append(
            f"- Random dictionary: equal shape, random rows (seed {settings['seed']}); threshold, scale and bias of each layer "
            "fitted to the same L0 and by least squares."
        )
    lines += [f"- {TITLES[name]}: {one.what}." for name, one in evaluation.results.items() if name == PER_LAYER]
    lines.append(
        f"- Model in {conditions['model_dtype']}, dictionary in {conditions['dictionary_dtype']}, on {conditions['device']}; "
        f"{versions}. All settings and numbers: `{JSON_NAME}`."
    )
    return "\n".join(lines)


def _dictionary(evaluation: Evaluation) -> DictionaryResult:
    return evaluation.results[DICTIONARY]


def _total_l0(result: DictionaryResult) -> str:
    return f"{math.fsum(result.reconstruction.l0):.1f}"


def _mean_score(name: str) -> Callable[[DictionaryResult], str]:
    return lambda result: _number(mean_scores(result.graphs).get(name, math.nan))


def _row(
    title: str, results: dict[str, DictionaryResult], text: Callable[[DictionaryResult], str], empty: int
) -> list[str]:
    return [title, *(text(result) for result in results.values()), *["–"] * empty]


def _cells(title: str, replacements: Iterable[Replacement | None], text: Callable[[Replacement], str]) -> list[str]:
    return [title, *("–" if one is None else text(one) for one in replacements)]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "–"


def _plain(data: dict[str, Any]) -> str:
    """What was read, in words."""
    if "activations_given" in data:
        return "given as activations"
    left_out = data["norm_outliers_left_out"]
    return f"{data['sequences']} sequences of {data['tokens_read']} tokens in all, {left_out} norm outliers left out"
