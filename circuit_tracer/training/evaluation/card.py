"""The report of an evaluation: evaluation.json, a model card, pictures. Equal evaluations give equal files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.training.evaluation.evaluate import AUTOENCODERS
from circuit_tracer.training.evaluation.method import JSON_NAME, method
from circuit_tracer.training.evaluation.pictures import draw
from circuit_tracer.training.evaluation.results import DICTIONARY, PER_LAYER, Evaluation
from circuit_tracer.training.evaluation.tables import (
    difference_table,
    graph_table,
    layer_table,
    splice_table,
    summary_table,
)

CARD_NAME = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_report(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write evaluation.json, README.md and, where matplotlib is installed, pictures; the paths, in that order.

    Without matplotlib the card says that there are no pictures.

    Args:
        evaluation: What `evaluate` measured.
        folder: Made if needed.

    Returns:
        The paths that were written.

    Raises:
        InputError: For a folder that cannot be written into.
        ResourceError: When the disk is full.
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
    """Markdown, all of its numbers from ``evaluation``; ``pictures`` are file names beside it.

    Args:
        evaluation: What `evaluate` measured.
        pictures: File names beside the card.

    Returns:
        Markdown.
    """
    shown, own = list(pictures), evaluation.results[DICTIONARY]
    sections = [_head(evaluation), "## Results\n\n" + summary_table(evaluation)]
    if PER_LAYER in evaluation.results:
        sections.append("## Against the dictionary beside\n\n" + difference_table(evaluation))
    sections.append("## By layer\n\n" + layer_table(evaluation))
    if own.spliced:
        sections.append("## Spliced into the stream, one layer at a time\n\n" + splice_table(evaluation))
    sections.append(
        _pictures(shown) if shown else "No pictures: matplotlib was not installed when this page was written."
    )
    if own.graphs:
        sections.append("## Graphs\n\n" + graph_table(evaluation))
    if evaluation.not_measured:
        sections.append("## Not measured\n\n" + "\n".join(f"- {line}" for line in evaluation.not_measured))
    return _front_matter(evaluation) + "\n\n".join([*sections, method(evaluation)]) + "\n"


def _front_matter(evaluation: Evaluation) -> str:
    what, model = evaluation.results[DICTIONARY].what, evaluation.conditions["model"]
    kind = what.split(",")[0].removesuffix("s").replace(" ", "-")
    lines = ["---", "library_name: circuit-tracer", "tags:", "- circuit-tracer", "- interpretability", f"- {kind}"]
    if _HUB_NAME.fullmatch(model):
        lines.append(f"base_model: {model}")
    return "\n".join([*lines, "---", "", ""])


def _head(evaluation: Evaluation) -> str:
    conditions = evaluation.conditions
    model, transcoders = conditions["model"], conditions.get("transcoders", "FOLDER")
    kind, _, rest = evaluation.results[DICTIONARY].what.partition(", ")
    called = model if _HUB_NAME.fullmatch(model) else "MODEL"  # of a folder or file only its last name is known
    command = f"attribute -m {called} -t {transcoders} -p 'The capital of France is' -o graph.safetensors"
    if kind == AUTOENCODERS:  # no prompt can be traced with them
        command = f"evaluate -m {called} -t {transcoders} --data TEXT.txt"
    return (
        f"# {kind[0].upper()}{kind[1:]} for {model}\n\n{kind[0].upper()}{kind[1:]}, {rest}.\n\n"
        f"```\ncircuit-tracer {command}\n```"
    )


def _pictures(names: list[str]) -> str:
    return "\n".join(f"![{Path(name).stem}]({name})" for name in names)
