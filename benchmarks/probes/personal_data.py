"""Which tokens are personal data? Made-up texts in five languages (`personal.py`), read by SmolLM2, token by token.

    python -m benchmarks.probes.personal_data --model MODEL [--per-family 24] [--layer 10] [--results FILE]

Groups are template families (the words around are those of no text that was learned from), then languages (an unseen language).
Two families set thresholds and nothing else, in all languages, without personal data. A text is flagged if any token is.
Features are the model's own neurons of the layer, which need no dictionary. Beside: the same model asked outright about the
first texts (a judge is slow), and regular expressions for e-mail addresses and phone numbers, as people have them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.probes.beside import Task
from benchmarks.probes.judge import judged
from benchmarks.probes.personal import Personal, personal_texts
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.learn import Method
from circuit_tracer.probes.reading import Subject
from circuit_tracer.replacement_model import ReplacementModel

SETTING = ("letter", "notice")  # families that set thresholds alone
LEARNED: dict[str, tuple[str, Method]] = {
    "raw, logistic": ("stream", "l2"),
    "raw, difference of means": ("stream", "mean"),
    "neurons, difference of means": ("features", "mean"),
    "random dictionary, difference of means": ("random dictionary", "mean"),
    "bag of words": ("bag of words", "l2"),
}
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", re.IGNORECASE)
PHONE = re.compile(r"\+?\(?\d[\d ()./-]{7,}\d")


def by_expressions(text: str) -> float:
    """How many e-mail addresses and phone numbers regular expressions see."""
    return float(len(EMAIL.findall(text)) + len(PHONE.findall(text)))


def task_of(seed: int, per_family: int, negatives: int) -> tuple[Task, list[str]]:
    """The task, and its texts in order. negatives: a family and language, that set thresholds."""
    made = personal_texts(seed, per_family)
    own = [one for one in made if one.family not in SETTING]
    spare = [one for one in personal_texts(seed + 1, 2 * negatives) if one.family in SETTING and not one.label]
    spare = list({one.text: one for one in spare}.values())
    texts = [one.text for one in [*own, *spare]]
    task = Task(
        [_example(one) for one in own],
        [_example(one) for one in spare],
        {name: [getattr(one, name) for one in own] for name in ("family", "language")},
        {"regular expressions": [by_expressions(text) for text in texts]},
    )
    return task, texts


def _example(one: Personal) -> Example:
    return Example(one.text, label=one.label, spans=tuple((start, end) for start, end, _ in one.spans))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--per-family", type=int, default=24)
    parser.add_argument("--negatives", type=int, default=12)
    parser.add_argument("--judged", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "monitor_personal.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, texts = task_of(args.seed, args.per_family, args.negatives)
    model = ReplacementModel.from_pretrained(str(args.model), "neurons", device="cpu", dtype=torch.float32)
    outright = judged(model.parts.model, model.tokenizer, texts[: args.judged], "personal")
    task.scores["asked outright"] = outright  # type: ignore[index]
    table = task.table(Subject.of(model), ("hook_resid_post", args.layer), [args.layer], "token")
    settings = {
        "layer": args.layer,
        "texts": len(task.examples),
        "with personal data": sum(bool(each.label) for each in task.examples),
        "texts that set thresholds": len(task.negatives),
        "asked outright": len(outright),
        "tokens": len(table.text),
        "personal tokens": int(table.positive.sum()),
    }
    print(settings, flush=True)
    results: dict[str, Any] = describe(versions={"ours": versions()}, settings=settings)
    write_results(args.results, results | {"groups": task.measured(table, LEARNED, 5, args.seed)})


if __name__ == "__main__":
    main()
