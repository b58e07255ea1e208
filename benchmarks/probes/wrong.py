"""Will the answer be wrong? Read off the question's last token, before a word is said.

    python -m benchmarks.probes.wrong [--model MODEL] [--results FILE]

Weakened copies of the embedded model (`benchmarks/many/wrong_answers.py`: a third of the cities forgotten, or moved, or noise
on its MLPs) on one- and two-hop questions, and SmolLM2 on facts and sums (`questions.py`). An answer is wrong if it is not what
the world says. Groups are subjects (nothing is learned of a city that is tested); for SmolLM2 also relations. Half the subjects
only set thresholds. Beside: what the logits of the same pass say (one minus the top probability, entropy), which nothing
is learned for; and SmolLM2 asked outright whether it would be wrong, of the first questions.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.many.wrong_answers import COPIES
from benchmarks.probes.beside import Task
from benchmarks.probes.judge import judged
from benchmarks.probes.questions import Question, answered, english_questions, sums, world_questions
from benchmarks.probes.truth import one_model
from circuit_tracer.demo import MODEL, TRANSCODER
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.probes.examples import Example
from circuit_tracer.replacement_model import ReplacementModel


def questions_of(
    model: Any, tokenizer: Any, questions: Sequence[Question], groupings: Sequence[str], seed: int
) -> Task:
    """The task: half of the subjects are learned from and tested on, the right answers of the others set thresholds."""
    found = answered(model, tokenizer, questions)
    subjects = sorted({one.subject for one in questions})
    setting = set(random.Random(seed).sample(subjects, len(subjects) // 2))
    pairs = list(zip(questions, found, strict=True))
    random.Random(seed).shuffle(pairs)
    own = [pair for pair in pairs if pair[0].subject not in setting]
    spare = [pair for pair in pairs if pair[0].subject in setting and pair[1].right]
    said = [*own, *spare]
    return Task(
        [Example(one.prompt, label=not answer.right) for one, answer in own],
        [Example(one.prompt, label=False) for one, _ in spare],
        {grouping: [getattr(one, grouping) for one, _ in own] for grouping in groupings},
        {
            "one minus top probability": [1 - answer.top for _, answer in said],
            "entropy": [answer.entropy for _, answer in said],
        },
    )


def counts(task: Task) -> dict[str, int]:
    """How many of what."""
    return {
        "questions": len(task.examples),
        "wrong": sum(bool(each.label) for each in task.examples),
        "right ones that set thresholds": len(task.negatives),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="SmolLM2 as a Hugging Face folder (default: the embedded model alone)"
    )
    parser.add_argument("--copies", nargs="*", choices=list(COPIES), default=list(COPIES))
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--judged", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "monitor_wrong.json")
    parser.add_argument("--go-on", action="store_true", help="keep the models that the record has")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = describe(versions={"ours": versions()}, models={})
    if args.go_on and args.results.exists():
        results["models"] = json.loads(args.results.read_text())["models"]
    for name in args.copies:
        own, tokenizer = load_model(MODEL)
        with tempfile.TemporaryDirectory() as scratch:
            COPIES[name](own, tokenizer, args.seed).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            weakened = ReplacementModel.from_pretrained(scratch, TRANSCODER, device="cpu", dtype=torch.float32)
        task = questions_of(weakened.parts.model, tokenizer, world_questions(), ["subject"], args.seed)
        layers = one_model(f"embedded, {name}", weakened, range(4), task, args.seed)
        results["models"][f"embedded, {name}"] = {**counts(task), "layers": layers}
        write_results(args.results, results)
    if args.model is not None:
        real = ReplacementModel.from_pretrained(str(args.model), "neurons", device="cpu", dtype=torch.float32)
        asked = [*english_questions(), *sums(args.seed, 60)]
        task = questions_of(real.parts.model, real.tokenizer, asked, ["subject", "relation"], args.seed)
        texts = [str(each.text) for each in task.examples[: args.judged]]
        task.scores["asked outright"] = judged(real.parts.model, real.tokenizer, texts, "wrong")  # type: ignore[index]
        layers = one_model("SmolLM2", real, args.layers, task, args.seed)
        results["models"]["SmolLM2"] = {**counts(task), "layers": layers}
    write_results(args.results, results)


if __name__ == "__main__":
    main()
