"""Feature records in the other forms that viewers read: one JSON file a feature, and Neuronpedia's uploads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.graph.files.node_ids import cantor_pair

# what Neuronpedia's POST /feature/upload-batch takes
FEATURES_A_BATCH, MOST_LOGITS, MOST_TOKENS, MOST_TEXT = 128, 20, 1024, 512

Place = tuple[int, int]


def export_json(features: FeatureFolder, folder: str | Path, places: Iterable[Place] | None = None) -> int:
    """Write ``{number}.json`` a feature, the number being layer and index paired; returns how many.

    Anthropic's viewer finds them in features/{scan}/, circuit-tracer's in a folder that the graph's scan names as "./folder"
    (any name but "features"), this project's in the folder `features` beside the page.
    """
    target, written = require_writable_folder(folder), 0
    for place, record in _chosen(features, places):
        with atomic_write(target / f"{cantor_pair(*place)}.json") as temporary:
            text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            temporary.write_text(text, encoding="utf-8", errors="replace")
        written += 1
    return written


def export_neuronpedia(
    features: FeatureFolder,
    folder: str | Path,
    model_id: str,
    source_set: str,
    places: Iterable[Place] | None = None,
    labels: Mapping[Place, str] | None = None,
) -> list[Path]:
    """Write the bodies of ``POST /feature/upload-batch`` as {layer}-{source set}-{batch}.json; returns them.

    Features that were never active are left out: Neuronpedia takes none without an activation.
    """
    target = require_writable_folder(folder)
    written = []
    for number, body in enumerate(upload_batches(features, model_id, source_set, places, labels)):
        path = target / f"{body['source']}-{number:05d}.json"
        with atomic_write(path) as temporary:
            temporary.write_text(
                json.dumps(body, allow_nan=False, ensure_ascii=False), encoding="utf-8", errors="replace"
            )
        written.append(path)
    return written


def upload_batches(
    features: FeatureFolder,
    model_id: str,
    source_set: str,
    places: Iterable[Place] | None = None,
    labels: Mapping[Place, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Bodies of ``POST /feature/upload-batch``, each of up to 128 features of one layer."""
    active = ((place, record) for place, record in _chosen(features, places) if record["examples_quantiles"])
    for layer, found in groupby(active, key=lambda one: one[0][0]):
        while batch := list(islice(found, FEATURES_A_BATCH)):
            made = [neuronpedia_feature(record, (labels or {}).get(place)) for place, record in batch]
            yield {"modelId": model_id, "source": f"{layer}-{source_set}", "features": made}


def neuronpedia_feature(record: Mapping[str, Any], label: str | None = None) -> dict[str, Any]:
    """One feature in the fields of ``POST /feature/upload-batch``."""
    examples = [example for group in record["examples_quantiles"] for example in group["examples"]]
    distinct = [example for example in examples if not example["is_repeated_datapoint"]]
    return {
        "index": record["index"],
        "density": record["activation_frequency"],
        "topLogits": _pairs(record, "top"),
        "bottomLogits": _pairs(record, "bottom"),
        "explanations": [{"text": label[:MOST_TEXT]}] if label else [],
        "activations": [
            {"tokens": example["tokens"][:MOST_TOKENS], "values": example["tokens_acts_list"][:MOST_TOKENS]}
            for example in distinct
        ],
    }


def _pairs(record: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    columns = zip(record[f"{side}_logits"], record[f"{side}_logit_values"], strict=True)
    return [{"token": token, "value": value} for token, value in islice(columns, MOST_LOGITS)]


def _chosen(features: FeatureFolder, places: Iterable[Place] | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    for place in features if places is None else sorted(set(places)):
        record = features.get(place)
        if record is None:
            raise InputError(
                f"{features.folder} has no record of feature {place[1]} of layer {place[0]}; build it first"
            )
        yield place, record
