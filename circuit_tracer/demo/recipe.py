"""The recipe of the embedded default: one command trains model and transcoder again and writes the published metrics.

Deterministic for given seeds on one kind of machine (one thread, deterministic algorithms); elsewhere the numbers differ
by a little, since floating-point sums do. What is measured is always what was written: the files are read back first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from circuit_tracer.demo import world
from circuit_tracer.demo.card import model_card
from circuit_tracer.demo.contexts import Contexts, with_jittered
from circuit_tracer.demo.dictionary import load_dictionary
from circuit_tracer.demo.evaluate import Metrics, evaluate
from circuit_tracer.demo.features import build_demo_features
from circuit_tracer.demo.labels import label_features
from circuit_tracer.demo.mixing import kinds
from circuit_tracer.demo.tokenizer import save_tokenizer
from circuit_tracer.demo.train_model import ModelRecipe, Report, encode_statements, train_model
from circuit_tracer.demo.train_transcoder import TranscoderRecipe, train_transcoder
from circuit_tracer.errors import InputError
from circuit_tracer.files import atomic_write, read_json, require_writable_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# The pair that is shipped.
MODEL_SEED = 1
TRANSCODER_SEED = 3

MODEL_NAME = "circuit-tracing-demo"
GRAPHS = 40  # prompts of a group of which graphs are made, to measure what mixed features carry


def train(
    folder: str | Path,
    seed: int = MODEL_SEED,
    transcoder_seed: int = TRANSCODER_SEED,
    *,
    report: Report = print,
    model_recipe: ModelRecipe | None = None,
    transcoder_recipe: TranscoderRecipe | None = None,
    graphs: int = GRAPHS,
) -> Metrics:
    """Train a model and its transcoder into ``folder`` and return the metrics (some minutes on one core).

    Writes model/, transcoder/, labels.json, features/, metrics.json and README.md; a model that is already there with the
    same seed and recipe is kept. ``graphs``: of so many prompts of each group, what mixed features carry is measured. Raises
    InputError if the folder cannot be written or holds another model.
    """
    target = require_writable_folder(folder)
    model_recipe, transcoder_recipe = model_recipe or ModelRecipe(), transcoder_recipe or TranscoderRecipe()
    start = time.perf_counter()
    with _repeatable():
        _model_files(target / "model", model_recipe, seed, report)
        model, tokenizer = load_model(target / "model")
        report(f"model ready after {time.perf_counter() - start:.0f} s")
        contexts = training_contexts(model, tokenizer, transcoder_recipe, transcoder_seed)
        with tempfile.TemporaryDirectory() as checkpoints:
            train_transcoder(
                contexts,
                transcoder_recipe,
                transcoder_seed,
                target / "transcoder",
                Path(checkpoints),
                MODEL_NAME,
                report,
            )
        report(f"transcoder ready after {time.perf_counter() - start:.0f} s")
        metrics = describe(target, graphs)
        metrics["seeds"] = {"model": seed, "transcoder": transcoder_seed}
        metrics["recipe"] = {"model": asdict(model_recipe), "transcoder": asdict(transcoder_recipe)}
    write_json(target / "metrics.json", metrics)
    with atomic_write(target / "README.md") as path:
        path.write_text(model_card(metrics), encoding="utf-8")
    report(f"metrics written after {time.perf_counter() - start:.0f} s")
    return metrics


def search(folder: str | Path, seeds: Iterable[tuple[int, int]], report: Report = print) -> tuple[int, int]:
    """Train pairs (model seed, transcoder seed) below ``folder`` until the shown prompts of one all pass; return it.

    Pairs finished earlier are not trained again. Raises InputError if no pair passes.
    """
    root = require_writable_folder(folder)
    for seed, transcoder_seed in seeds:
        place = root / f"{seed}-{transcoder_seed}"
        finished = place / "metrics.json"
        if finished.exists():
            metrics = read_json(finished)
        else:
            _share_model(root, seed, place)
            metrics = train(place, seed, transcoder_seed, report=report)
        passes = all(one["passes"] for one in metrics["shown"])
        report(f"model seed {seed}, transcoder seed {transcoder_seed}: shown prompts {'pass' if passes else 'fail'}")
        if passes:
            return seed, transcoder_seed
    raise InputError("no pair of seeds carries the shown prompts; try further seeds")


def describe(folder: Path, graphs: int = GRAPHS) -> Metrics:
    """Measure the model and transcoder in ``folder`` and write their labels.json and features/; returns the metrics."""
    model, tokenizer = load_model(folder / "model")
    transcoder = load_dictionary(folder / "transcoder")
    labels = label_features(model, tokenizer, transcoder)
    write_json(folder / "labels.json", labels)
    build_demo_features(folder)
    return evaluate(model, tokenizer, transcoder) | {"kinds": kinds(folder, labels, graphs)}


def training_contexts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: TranscoderRecipe, seed: int
) -> Contexts:
    """The contexts that the transcoder is trained on."""
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    ids_SP = encode_statements(tokenizer, world.transcoder_training())
    return with_jittered(model, ids_SP, stop, recipe.jitter, recipe.copies, seed)


def load_model(folder: str | Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model in fp32 and its tokenizer, from their files."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(str(folder))


def write_json(path: Path, content: object) -> None:
    """Write ``content`` indented, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_files(folder: Path, recipe: ModelRecipe, seed: int, report: Report) -> None:
    """Train the model into ``folder`` unless it is there; the note training.json says of which seed and recipe it is."""
    note, wanted = folder / "training.json", {"seed": seed, **asdict(recipe)}
    if note.exists():
        if read_json(note) != wanted:
            raise InputError(f"{folder} holds a model of another seed or recipe; choose an empty folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder)
    model = train_model(tokenizer, world.model_training(), recipe, seed, report)
    model.bfloat16().save_pretrained(str(folder))
    write_json(note, wanted)


def _share_model(root: Path, seed: int, place: Path) -> None:
    """Copy a finished model of this seed from another pair, so that it is trained once."""
    for done in sorted(root.glob(f"{seed}-*/model/training.json")):
        if not (place / "model").exists():
            shutil.copytree(done.parent, place / "model")


@contextmanager
def _repeatable() -> Iterator[None]:
    """One thread and deterministic algorithms inside; what was set before, after."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
