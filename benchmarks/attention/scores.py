"""Do the contributors of a score of attention add up to it? Every head of a model on one prompt.

    python -m benchmarks.attention.scores --model FOLDER --transcoders FOLDER [--results attention_scores.json]

For each head the score at the last token and its strongest key is explained from both sides. Reported are the errors of the
sums, median and largest, relative to the score and to the mass of its contributors; and which part of that features, errors,
tokens and constants are. What questions cost: `cost.py`. Exit status 1 if the median is above ``AIM``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.attention.heads import heads_of
from benchmarks.common.harness import read_prompts, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import PROMPTS, RESULTS
from circuit_tracer.attention.prompt_scores import PromptScores

AIM = 5e-7  # median error, relative to the score


def explain_all(model: Any, graph: Any) -> list[Any]:
    """Explanations of all heads."""
    found, last = [], graph.n_pos - 1
    for layer, head in heads_of(model.parts):
        key = int(PromptScores.of(graph, model).scores(layer).score(head, last).argmax())
        found.append(graph.explain_score(model, layer, head, last, key, pairs=False))
    return found


def summary(found: list[Any]) -> dict[str, Any]:
    """Errors of sums, and shares of mass by side and kind, means over heads."""
    of_score, of_mass = [], []
    for one in found:
        for side in (one.query_side, one.key_side):
            gap = abs(sum(side.parts.values()) - one.score)
            of_score.append(gap / abs(one.score))
            of_mass.append(gap / sum(side.mass.values()))
    shares = {
        name: {
            kind: statistics.mean(getattr(one, name).kept(0).shares[kind] for one in found)
            for kind in found[0].key_side.mass
        }
        for name in ("query_side", "key_side")
    }
    return {
        "heads": len(found),
        "error_of_score": {"median": statistics.median(of_score), "max": max(of_score)},
        "error_of_mass": {"median": statistics.median(of_mass), "max": max(of_mass)},
        "smallest_score": min(abs(one.score) for one in found),
        "share_of_mass": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompt", default="long-25")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel, attribute

    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    prompt = read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    graph = attribute(prompt, model, max_feature_nodes=8)
    found = explain_all(model, graph)
    record = {
        "model": args.model.name,
        "transcoders": args.transcoders.name,
        "prompt": args.prompt,
        "tokens": graph.n_pos,
        "sources": len(found[0].key_side.sources),
        **summary(found),
    }
    print(json.dumps(record, indent=1))
    if args.results:
        write_results(RESULTS / args.results, describe(versions=versions(), **record))
    if not record["error_of_score"]["median"] <= AIM:
        raise SystemExit(f"missed: the median error is above {AIM}")


if __name__ == "__main__":
    main()
