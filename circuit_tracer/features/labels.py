"""Names of features: the file that keeps them, and names made of a feature's own record, without any model.

`labels.json` beside the records: {layer: {index: {"label", "source", "score"}}}; a plain string in place of the object will
do. source: "record" (this module), "openai:MODEL" (interpret.py), "neuronpedia:MODEL/SET" (neuronpedia_labels.py), or
whatever else made it. score: how well the label told texts apart, 0 to 1, or absent. The file's first line, a digest of the
rest, notices damage; who edits the file removes that line.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.features.folder import LABELS, FeatureFolder
from circuit_tracer.files import atomic_write, locked, read_json, require_writable_folder
from circuit_tracer.files.digests import DIGEST, as_written, digest_of, unsealed

Place = tuple[int, int]

FROM_RECORD = "record"
WORDS = 3  # tokens named on each side of a label made of a record
COVERED = 0.6  # share of the strongest activations that must fall on the tokens named, or "…" says that there are more
STANDS_OUT = 1.5  # times the largest effect that chance would give; weaker effects say nothing


@dataclass(frozen=True)
class Label:
    """A feature's name, who gave it, and how good it is, if that was measured."""

    text: str
    source: str
    score: float | None = None


def read_labels(path: str | Path) -> dict[Place, str]:
    """The labels in a file, or in the `labels.json` of a folder; {} for a folder without one."""
    return {place: label.text for place, label in load_labels(path).items()}


def load_labels(path: str | Path) -> dict[Place, Label]:
    """``read_labels`` with source and score. Raises InputError for no file, FileFormatError for one that is no labels file."""
    path = Path(path)
    if path.is_dir():
        if not (path / LABELS).is_file():
            return {}
        path = path / LABELS
    if not path.is_file():
        raise InputError(f"no labels at {path}; give a labels.json, or the folder of one")
    try:
        layers = unsealed(read_json(path), str(path), by_hand=True)
        return {(int(layer), int(index)): _label(one) for layer, row in layers.items() for index, one in row.items()}
    except (FileFormatError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f'{path} is no labels file ({str(error)[:300]}); expected {{"0": {{"12": {{"label": "..."}}}}}}, by layer and '
            "feature"
        ) from error


def chosen_labels(path: str | Path) -> dict[Place, str]:
    """``read_labels`` of what was asked for by name: InputError also for a folder without labels."""
    if Path(path).is_dir() and not (Path(path) / LABELS).is_file():
        raise InputError(f"the folder {path} holds no {LABELS}; give a labels.json, or the folder of one")
    return read_labels(path)


def add_labels(folder: str | Path, labels: Mapping[Place, Label], over: bool = True) -> dict[Place, Label]:
    """Put labels beside those of a folder, in place of those of the same features unless ``over`` is False; returns all."""
    with locked(require_writable_folder(folder)):
        known = load_labels(folder)
        everything = {**known, **labels} if over else {**labels, **known}
        write_labels(folder, everything)
    return everything


def write_labels(folder: str | Path, labels: Mapping[Place, Label]) -> Path:
    """Write all labels of a folder, in place of what it has."""
    layers: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (layer, index), label in sorted(labels.items()):
        known = {"label": label.text, "source": label.source, "score": label.score}
        layers[str(layer)][str(index)] = {name: value for name, value in known.items() if value is not None}
    # a line a feature, for people who compare two files
    parts = [f'"{DIGEST}":"{digest_of(as_written(layers))}"']
    for depth, row in layers.items():
        lines = ",\n".join(f'"{feature}":{json.dumps(told, ensure_ascii=False)}' for feature, told in row.items())
        parts.append(f'"{depth}":{{\n{lines}}}')
    path, text = Path(folder) / LABELS, ",\n".join(parts)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{{{text}}}\n", encoding="utf-8", errors="replace")
    return path


def label_from_records(folder: str | Path) -> dict[Place, Label]:
    """Name the features of a folder that have no name yet by their records, write and return all names."""
    features, labels = FeatureFolder(folder), load_labels(folder)
    for place in features:
        if place not in labels and (text := describe(features.get(place))):
            labels[place] = Label(text, FROM_RECORD)
    return add_labels(folder, labels, over=False)


def describe(record: Mapping[str, Any]) -> str:
    """A name of what the record shows: the tokens it is most active on, and those it promotes if they stand out.

    “Dallas”, “Houston” → “Austin”. Empty if there is nothing to say.
    """
    reads, says = _read_tokens(record), _promoted_tokens(record)
    quoted = ", ".join(f"“{token}”" for token in reads)
    if reads and _share(record, reads) < COVERED:
        quoted += ", …"
    return f"{quoted} → {', '.join(f'“{token}”' for token in says)}".strip() if says else quoted


def _read_tokens(record: Mapping[str, Any]) -> list[str]:
    total = read_totals(record)
    return sorted(total, key=lambda token: (-total[token], token))[:WORDS]


def _share(record: Mapping[str, Any], tokens: list[str]) -> float:
    total = read_totals(record)
    return sum(total[token] for token in tokens) / sum(total.values())


def read_totals(record: Mapping[str, Any]) -> dict[str, float]:
    """A feature's activation on each token, over its strongest examples."""
    total: defaultdict[str, float] = defaultdict(float)
    for example in record["examples_quantiles"][0]["examples"] if record["examples_quantiles"] else ():
        centre = example["train_token_ind"]
        total[shown_token(example["tokens"][centre])] += abs(example["tokens_acts_list"][centre])
    return total


def _promoted_tokens(record: Mapping[str, Any]) -> list[str]:
    if any(record.get(name) is None for name in ("top_logit_values", "logit_spread", "n_vocabulary")):
        return []  # a record that others made
    values, spread = record["top_logit_values"], record["logit_spread"]
    chance = STANDS_OUT * spread * math.sqrt(2 * math.log(max(2, record["n_vocabulary"])))
    chosen = [token for token, value in zip(record["top_logits"], values, strict=True) if value > chance]
    return [shown_token(token) for token in chosen[:WORDS]]


def shown_token(token: str) -> str:
    """A token without the spaces around it, if that leaves anything; else with signs for them."""
    return token.strip() or token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _label(value: Any) -> Label:
    if isinstance(value, str):
        return Label(value, "unknown")
    text, source, score = value["label"], value.get("source", "unknown"), value.get("score")
    if (
        not isinstance(text, str)
        or not isinstance(source, str)
        or isinstance(score, bool)
        or not isinstance(score, int | float | None)
    ):
        raise ValueError(f"a label is {shortened(value)}")
    return Label(text, source, score)
