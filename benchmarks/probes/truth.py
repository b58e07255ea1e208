"""Which statements does the model not hold true? Statements of the embedded world and, in English, of a real model.

    python -m benchmarks.probes.truth [--model MODEL] [--results FILE]

A lie is a statement that the model would itself complete otherwise: of facts that it gets right (`questions.py`), the statement
with its own answer, and with another's of the same relation, so that both kinds use the same words. The probe reads the last
token (with a full stop behind it in English). Groups are relations, then subjects: what is tested is never learned from.

Beside: the model's own probability of the answer behind its prompt, which knows where the answer begins and is the best that
anyone could do for facts chosen like this; and, of the real model, the same model asked outright. Features are those of the
embedded dictionary, and the real model's own neurons, which need none.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.probes.beside import Task
from benchmarks.probes.judge import judged
from benchmarks.probes.questions import Question, answered, english_questions, others, world_questions
from circuit_tracer.demo import MODEL, TRANSCODER
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.learn import Method
from circuit_tracer.probes.reading import Subject
from circuit_tracer.replacement_model import ReplacementModel

MOST = 60  # questions of a relation
LEARNED: dict[str, tuple[str, Method]] = {
    "raw, logistic": ("stream", "l2"),
    "raw, difference of means": ("stream", "mean"),
    "features": ("features", "l2"),
    "random dictionary": ("random dictionary", "l2"),
    "bag of words": ("bag of words", "l2"),
}


def statements(
    model: Any, tokenizer: Any, questions: Sequence[Question], setting: Sequence[str], end: str, seed: int
) -> tuple[Task, dict[str, int]]:
    """The task, and how many questions of each relation the model gets right. setting: relations that set thresholds alone."""
    right = [one for one, found in zip(questions, answered(model, tokenizer, questions), strict=True) if found.right]
    by_relation = defaultdict(list)
    for one in right:
        by_relation[one.relation].append(one)
    chance, own = random.Random(seed), []
    for relation in sorted(by_relation):
        if relation not in setting:
            found = by_relation[relation]
            own += chance.sample(found, min(MOST, len(found)))
    spare = [one for relation in setting for one in by_relation[relation]]
    lies = [
        Question(one.prompt, wrong, one.subject, one.relation)
        for one, wrong in zip(own, others(own, seed), strict=True)
    ]
    said = [*own, *lies, *spare]
    probability = [-found.log_probability for found in answered(model, tokenizer, said)]
    texts = [f"{one.saying(one.answer)}{end}" for one in said]
    n = len(own)
    examples = [Example(text, label=at >= n) for at, text in enumerate(texts[: 2 * n])]
    task = Task(
        examples,
        [Example(text, label=False) for text in texts[2 * n :]],
        {name: [getattr(one, name) for one in [*own, *lies]] for name in ("relation", "subject")},
        {"own probability of the answer": probability},
    )
    return task, {relation: len(found) for relation, found in by_relation.items()}


def one_model(name: str, model: ReplacementModel, layers: Sequence[int], task: Task, seed: int) -> list[dict[str, Any]]:
    """All ways at each layer."""
    found = []
    for layer in layers:
        print(f"{name}, layer {layer}", flush=True)
        table = task.table(Subject.of(model), ("hook_resid_post", layer), [layer], "last")
        found.append({"layer": layer, **task.measured(table, LEARNED, 5, seed)})
    return found


def main() -> None:
    """Measure both models and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="SmolLM2 as a Hugging Face folder (default: the embedded model alone)"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "monitor_truth.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = describe(versions={"ours": versions()}, models={})
    embedded = ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=torch.float32)
    setting = ("abbreviation, 1 hops", "abbreviation, 2 hops")
    task, held = statements(embedded.parts.model, embedded.tokenizer, world_questions(), setting, "", args.seed)
    results["models"]["embedded"] = {"held": held, "layers": one_model("embedded", embedded, range(4), task, args.seed)}
    write_results(args.results, results)
    if args.model is not None:
        real = ReplacementModel.from_pretrained(str(args.model), "neurons", device="cpu", dtype=torch.float32)
        task, held = statements(
            real.parts.model, real.tokenizer, english_questions(), ["place (state)"], ".", args.seed
        )
        texts = [str(each.text) for each in [*task.examples, *task.negatives]]
        task.scores["asked outright"] = judged(real.parts.model, real.tokenizer, texts, "false")  # type: ignore[index]
        results["models"]["SmolLM2"] = {
            "held": held,
            "layers": one_model("SmolLM2", real, args.layers, task, args.seed),
        }
    write_results(args.results, results)


if __name__ == "__main__":
    main()
