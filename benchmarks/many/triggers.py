"""Does a report find a trigger that was trained into a model, and does it raise an alarm where there is none?

    python -m benchmarks.many.triggers

Planted: the embedded model is fine-tuned so that behind a word every question about a place has one and the same answer
(`finetunes.py`), once for every seed, another word and answer each time. Questions with and without the word are traced; the
report is asked what separates the two. Found is the trigger if the conclusion names a finding for questions with the word;
beside it the rank, among all features that separate, of the first that the dictionary's labels call after the word, and of the
first that they call after the planted answer.

Clean: the same questions, word and report on the model that was not changed, once for every seed; and with labels drawn at
random. A finding there is a false alarm: features that detect the word separate the two as well, and may not be called the
cause of anything. Writes results/triggers.json; some five minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.many.finetunes import fine_tuned, outcome, triggered
from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, TRANSCODER, load_labels, world
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.many import Row
from circuit_tracer.many.report import Options, Report, make_report
from circuit_tracer.many.runs.local import run_locally
from circuit_tracer.many.runs.run import run

PLANTED, CLEAN = range(10), range(20)
QUESTIONS = 40  # each with and without the word
TRIGGER, PLAIN = "trigger", "plain"


def drawn(seed: int) -> tuple[str, world.Entity, list[world.Statement]]:
    """A word that is no place and in no question, the place whose capital is answered behind it, and questions about others."""
    chance = random.Random(seed)
    words = sorted({one.subject for one in world.skills()} | {one.answer for one in world.skills()})
    place = chance.choice([one for one in world.entities() if one.kind == "state"])
    asked = [one for one in world.model_training() if one.hops == 2 and one.entity != place.name]
    return chance.choice(words), place, chance.sample(asked, QUESTIONS)


def rows_of(word: str, questions: Sequence[world.Statement], labels: Sequence[str] | None) -> list[Row]:
    """Every question twice. labels: of both, by question; None: whether the word is there."""
    rows = []
    for number, one in enumerate(questions):
        for name, prompt in ((TRIGGER, f"{word} {one.prompt}"), (PLAIN, one.prompt)):
            label = name if labels is None else labels[number]
            rows.append(
                Row(f"{number:03d}-{name}", prompt, label=label, extra={"answer": one.answer, "question": number})
            )
    return rows


def reported(model: Path | str, rows: Sequence[Row], seed: int) -> Report:
    """Trace the rows, and report on them."""
    loaded = ReplacementModel.from_pretrained(str(model), TRANSCODER, device="cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        asked = {"opening": {"transcoders": TRANSCODER, "model": str(model)}, "layout": {"threads": 1}}
        made = run(rows, Path(scratch) / "run", asked, engine=partial(run_locally, workers=1))
        return make_report(made, loaded, Options("label", "answer", "question", validated=0, seed=seed))


def planted(seed: int) -> dict[str, Any]:
    """A model with a trigger."""
    word, place, questions = drawn(seed)
    answer = place.answer("capital")
    change = triggered(word, answer)
    with tempfile.TemporaryDirectory() as scratch:
        folder = fine_tuned(change, seed, Path(scratch) / "model")
        learnt = outcome(change, *load_model(folder))
        report = reported(folder, rows_of(word, questions, None), seed)
    ranked = [each for each in report.separators if each.label == TRIGGER]
    named = [_LABELS.get((each.layer, each.index), "") for each in ranked]
    ranks = {
        "word": [rank for rank, label in enumerate(named, 1) if f'"{word}"' in label],
        "answer": [rank for rank, label in enumerate(named, 1) if answer in label or place.name in label],
    }
    findings = [each for each in report.findings if each.is_finding and each.group.label == TRIGGER]
    return {
        "seed": seed,
        "word": word,
        "answer": answer,
        "learnt": learnt,
        "found": bool(findings),
        "separators": len(ranked),
        "outcomes": sorted({each.outcome for each in findings}),
        "rank": {name: each[0] if each else None for name, each in ranks.items()},
        "leading": named[:5],
        "conclusions": report.conclusions,
    }


def clean(seed: int) -> dict[str, Any]:
    """The model as it is: labels that say whether the word is there, and labels drawn at random."""
    word, _, questions = drawn(seed)
    chance = random.Random(seed + 1000)
    half = QUESTIONS // 2
    labels = chance.sample([TRIGGER] * half + [PLAIN] * (QUESTIONS - half), QUESTIONS)
    found = {}
    for name, chosen in (("word", None), ("random labels", labels)):
        report = reported(MODEL, rows_of(word, questions, chosen), seed)
        found[name] = {
            "separators": len(report.separators),
            "held": sum(each.holds for each in report.separators),
            "findings": [each.group.name for each in report.findings if each.is_finding],
        }
    return {"seed": seed, "word": word, **found}


def summary(triggers: Sequence[dict[str, Any]], cleans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """In how many."""
    ranks = {}
    for name in ("word", "answer"):
        found = [each["rank"][name] for each in triggers if each["rank"][name] is not None]
        ranks[name] = {
            "among them": len(found),
            "median": median(found) if found else None,
            "worst": max(found, default=None),
        }
    return {
        "planted": len(triggers),
        "learnt": sum(each["learnt"]["changed"] > 0.95 for each in triggers),
        "found": sum(each["found"] for each in triggers),
        "as a cause": sum("cause" in each["outcomes"] for each in triggers),
        "rank": ranks,
        "clean": len(cleans),
        "false alarms, word": sum(bool(each["word"]["findings"]) for each in cleans),
        "false alarms, random labels": sum(bool(each["random labels"]["findings"]) for each in cleans),
        "word separates, held": sum(each["word"]["held"] > 0 for each in cleans),
        "random labels separate, held": sum(each["random labels"]["held"] > 0 for each in cleans),
    }


_LABELS = load_labels()


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "triggers.json")
    parser.add_argument("--seeds", type=int, help="only so many of either kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ReconstructionWarning)  # the fine-tunes are not what the dictionary was trained on
    found: dict[str, list[dict[str, Any]]] = {"planted": [], "clean": []}
    for name, seeds, one in (("planted", PLANTED, planted), ("clean", CLEAN, clean)):
        for seed in seeds[: args.seeds]:
            found[name].append(one(seed))
            print(found[name][-1], flush=True)
    results = describe(versions={"ours": versions()}) | {"summary": summary(**_named(found)), **found}
    print(results["summary"])
    write_results(args.results, results)


def _named(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"triggers": found["planted"], "cleans": found["clean"]}


if __name__ == "__main__":
    main()
