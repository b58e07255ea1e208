"""The folder that HeadVis and Neuronpedia's head pages read: every head's scores, and sequences with its attention.

    {model}/headvis/{dataset}/   config.json, scatter_data.json, server_config.json,
                                 attributions/manifest.json, heads/L{layer}H{head}.json

As Neuronpedia's own pipeline writes it, of which the constants are. What differs: intervals are those of all sequences, not of
the first ones, and every sequence can be sampled, because patterns are read twice: once for all scores, once of what is kept.

Letters: N sequences, T tokens of a sequence, L layers, H heads.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attention.head_table import HeadTable
from circuit_tracer.attention.heads import opened
from circuit_tracer.attention.pattern_scores import SCORES, WEAK
from circuit_tracer.errors import InputError
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.models.indices import Head
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, Stop
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.token_text import TokenTexts
from circuit_tracer.progress import Progress, silent

INTERVALS, OF_AN_INTERVAL, OF_THE_TOP = 5, 3, 10
KEYS_OF_A_QUERY, LEAST = 8, 0.005
DISTANCES = [0, *(2**power for power in range(13))]  # edges of bins
PEAK_BINS, TOP_TOKENS, DECIMALS = 50, 50, 4
ENTRIES = 2**25  # of attention, held before files are written


@dataclass(frozen=True)
class Sample:
    """A sequence that is shown of a head. interval: 1, the weakest, to INTERVALS."""

    sequence: int
    interval: int


@dataclass(frozen=True)
class Entries:
    """A head's attention in a sequence, sparse: indices query * T + key, ascending, and values."""

    indices: list[int]
    values: list[float]


@typed
@plain_torch()
def write_headvis(
    table: HeadTable,
    model: Any,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    dataset: str | None = None,
    model_id: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Path:
    """Write a table of `diagnose_heads`, made of the same model, as FOLDER/{model_id}/headvis/{dataset}/.

    Files of the same names are replaced; config.json, by which a folder is known, is written last.

    Args:
        table: Of `diagnose_heads`.
        model: The model that it was made of.
        folder: Where to write.
        tokenizer: Its tokenizer.
        dataset: What the text is called.
        model_id: The model's name on Neuronpedia; by default the last part of its own, in lower case.
        seed: Decides which sequences are shown of an interval.
        progress: Called with (stage, done, total).

    Returns:
        The folder that was written.

    Raises:
        InputError: For a model of other sizes.
    """
    parts, tokenizer, _ = opened(model, tokenizer, True)
    sizes = (len(parts.layers), parts.config.n_heads)
    if sizes != (table.n_layers, table.n_heads):
        raise InputError(
            f"the table is of {table.n_layers} layers of {table.n_heads} heads, and the model has {sizes[0]} of {sizes[1]}; "
            "give the model that was diagnosed"
        )
    model_id = _file_name(model_id or Path(table.model).name.lower())
    folder = require_writable_folder(Path(folder) / model_id / "headvis" / _file_name(dataset or table.text))
    texts = TokenTexts(tokenizer)
    tokens = {number: [texts.alone(int(i)) for i in ids] for number, ids in enumerate(table.sequences)}
    for layers in _groups(table):
        samples = {
            head: chosen_samples(table.peaks[:, head[0], head[1]].numpy(), head, seed) for head in _heads(table, layers)
        }
        kept = _read(table, parts, samples)
        for (layer, head), chosen in samples.items():
            peaks = table.peaks[:, layer, head].double().numpy()
            sequences = [
                {
                    "sequence_id": each.sequence,
                    "interval": each.interval,
                    "tokens": tokens[each.sequence],
                    "attention_indices": kept[layer, head, each.sequence].indices,
                    "attention_values": kept[layer, head, each.sequence].values,
                    "seq_len": len(tokens[each.sequence]),
                    "max_activation": round(float(peaks[each.sequence]), DECIMALS),
                }
                for each in chosen
            ]
            _write(folder / "heads" / f"L{layer}H{head}.json", _of_head(sequences, peaks))
        progress("writing heads", layers[-1] + 1, table.n_layers)
    _write(folder / "scatter_data.json", [_scatter_row(row) for row in table.rows()])
    _write(folder / "server_config.json", {})
    _write(folder / "attributions" / "manifest.json", {})
    _write(folder / "config.json", _config(table, dataset or table.text, model_id, seed))
    return folder


def _file_name(text: str) -> str:
    """As Neuronpedia writes a data set's name in its folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "text"


def chosen_samples(peaks_N: np.ndarray, head: Head, seed: int) -> list[Sample]:
    """The sequences that are shown of a head: some of each interval of its largest attention, and the top ones, strongest
    first.

    Intervals have as many sequences each, but that equal peaks are in the same one.
    """
    ascending, n = np.sort(peaks_N), len(peaks_N)
    edges = [float(ascending[min(round(i * n / INTERVALS), n - 1)]) for i in range(1, INTERVALS)]
    members: dict[int, list[int]] = defaultdict(list)
    for number, peak in enumerate(peaks_N.tolist()):
        members[bisect_right(edges, peak) + 1].append(number)
    random, found = np.random.default_rng([seed, *head]), []
    for interval in range(1, INTERVALS):
        drawn = random.permutation(members[interval])[:OF_AN_INTERVAL]
        found += [Sample(int(number), interval) for number in sorted(drawn)]
    top = sorted(members[INTERVALS], key=lambda number: (-peaks_N[number], number))[:OF_THE_TOP]
    return found + [Sample(number, INTERVALS) for number in top]


def sparse(pattern_TT: Tensor) -> Entries:
    """The strongest keys of each query, those that are not too weak."""
    n_tokens = len(pattern_TT)
    values, keys = pattern_TT.float().cpu().topk(min(KEYS_OF_A_QUERY, n_tokens), dim=-1)
    kept = values >= LEAST
    flat = (torch.arange(n_tokens)[:, None] * n_tokens + keys)[kept]
    order = flat.argsort()
    strong = [round(value, DECIMALS) for value in values[kept][order].tolist()]
    return Entries(flat[order].tolist(), strong)


def _heads(table: HeadTable, layers: range) -> Iterator[Head]:
    return ((layer, head) for layer in layers for head in range(table.n_heads))


def _groups(table: HeadTable) -> Iterator[range]:
    """Layers whose entries are held together."""
    of_a_head = (OF_THE_TOP + OF_AN_INTERVAL * (INTERVALS - 1)) * KEYS_OF_A_QUERY * max(map(len, table.sequences))
    step = max(1, ENTRIES // (of_a_head * table.n_heads))
    return (range(start, min(start + step, table.n_layers)) for start in range(0, table.n_layers, step))


def _read(
    table: HeadTable, parts: ModelParts, samples: dict[Head, list[Sample]]
) -> dict[tuple[int, int, int], Entries]:
    """By (layer, head, sequence): one pass over each sequence that a head shows, as far as the last layer of one that does."""
    found: dict[tuple[int, int, int], Entries] = {}
    wanted: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # sequence, layer: heads
    for (layer, head), chosen in samples.items():
        for each in chosen:
            wanted[each.sequence][layer].append(head)
    for number, of_layer in sorted(wanted.items()):

        def visit(layer: int, pattern_BHTT: Tensor, number: int = number, of_layer: Any = of_layer) -> None:
            for head in of_layer[layer]:
                found[layer, head, number] = sparse(pattern_BHTT[0, head])
            if layer == max(of_layer):
                raise Stop

        ModelRun(parts, {("attn.hook_pattern", layer): visit for layer in of_layer})(table.sequences[number])
    return found


def _of_head(sequences: list[dict[str, Any]], peaks_N: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(np.clip((peaks_N * PEAK_BINS).astype(int), 0, PEAK_BINS - 1), minlength=PEAK_BINS)
    distances, of_tokens = (
        [0.0] * (len(DISTANCES) - 1),
        (defaultdict[str, float](float), defaultdict[str, float](float)),
    )
    for each in sequences:
        for index, value in zip(each["attention_indices"], each["attention_values"], strict=True):
            places = divmod(index, each["seq_len"])
            place = bisect_right(DISTANCES, places[0] - places[1]) - 1
            if place < len(distances):
                distances[place] += value
            for weights, position in zip(of_tokens, places, strict=True):
                weights[each["tokens"][position]] += value
    return {
        "sequences": sequences,
        "qk_distance_histogram": {
            "bin_edges": DISTANCES,
            "bin_values": [round(value, DECIMALS) for value in distances],
        },
        "top_query_tokens": _strongest(of_tokens[0]),
        "top_key_tokens": _strongest(of_tokens[1]),
        "histogram": {
            "bin_edges": [round(edge / PEAK_BINS, DECIMALS) for edge in range(PEAK_BINS + 1)],
            "bin_values": counts.tolist(),
        },
        "statistics": {
            "n_samples": len(sequences),
            "mean_max_activation": round(float(peaks_N.mean()), DECIMALS),
        },
    }


def _strongest(weights: dict[str, float]) -> list[dict[str, Any]]:
    ranked = sorted(weights.items(), key=lambda item: -item[1])[:TOP_TOKENS]
    return [{"token": token, "weight": round(weight, DECIMALS)} for token, weight in ranked]


def _scatter_row(row: dict[str, Any]) -> dict[str, Any]:
    scores = {score.headvis: row[name] for name, score in SCORES.items()}
    return {
        "layer": row["layer"],
        "head": row["head"],
        **{name: None if value is None else round(value, DECIMALS) for name, value in scores.items()},
    }


def _config(table: HeadTable, dataset: str, model_id: str, seed: int) -> dict[str, Any]:
    measured = [name for name in SCORES if bool(table[name].isfinite().any())]
    names = {"model_name": table.model, "np_model_id": model_id, "dataset_name": dataset}
    return {
        **names,
        "heads": [[row["layer"], row["head"]] for row in table.rows()],
        "n_layers": table.n_layers,
        "n_heads": table.n_heads,
        "n_intervals": INTERVALS,
        "metrics": [SCORES[name].headvis for name in measured],
        "metric_descriptions": {SCORES[name].headvis: SCORES[name].what for name in measured},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [
            {"key": "qk_distance_histogram", "label": "Q-K distance"},
            {"key": "histogram", "label": "Activation distribution"},
        ],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Top query tokens"},
            {"key": "top_key_tokens", "label": "Top key tokens"},
        ],
        "statistics_display": {
            "n_samples": {"label": "Samples kept", "format": "default"},
            "mean_max_activation": {"label": "Mean max activation", "format": "default"},
        },
        "pipeline_config": {
            **names,
            "n_sequences": len(table.sequences),
            "seq_len": max(map(len, table.sequences)),
            "dtype": table.dtype,
            "attn_implementation": "circuit_tracer",
            "induction_attention_threshold": WEAK,
            "n_intervals": INTERVALS,
            "samples_per_interval": OF_AN_INTERVAL,
            "samples_per_top_interval": OF_THE_TOP,
            "sparse_topk_per_row": KEYS_OF_A_QUERY,
            "sparse_threshold": LEAST,
            "sample_seed": seed,
            "actual_sequences_processed": len(table.sequences),
            "num_hidden_layers": table.n_layers,
            "num_attention_heads": table.n_heads,
        },
    }


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
