"""A base model's dictionary carried over to a fine-tuned one: tokens that a warm start needs for what a cold one reaches.

    python -m benchmarks.training.warm_start

The base is the embedded model with its transcoder. Fine-tuned is the same model after a brief training on statements in which
some pairs of entities have swapped a city. Cold runs train a transcoder of it from drawn weights, warm ones from the base's
files, on the same contexts, with the same recipe and a third of the tokens or fewer. Measured is the NMSE on contexts of
statements held out from training. Writes results/training_warm_start.json; some three minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.many.finetunes import Tuning, loss, swapped, swapped_cities, tune
from circuit_tracer.demo import demo_folder, world
from circuit_tracer.demo.contexts import Contexts, collect, with_jittered
from circuit_tracer.demo.dictionary import load_dictionary, reconstruct
from circuit_tracer.demo.recipe import MODEL_NAME, load_model
from circuit_tracer.demo.train_model import encode_statements
from circuit_tracer.demo.train_transcoder import Draws, TranscoderRecipe, configuration, initial_state, publish
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.origin import open_origin, take_over_

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

COLD_STEPS = 600
SHARES = {"cold": (1, 3), "warm": (3, 6, 12, 24)}  # a run has COLD_STEPS / this many steps
SWAPPED = 12  # entities of a kind whose last open city changes place with that of another
TUNING = Tuning()


@dataclass(frozen=True)
class Subject:
    """A model, contexts to train on, and contexts of other statements to measure on."""

    training: Contexts
    held_out: Contexts


def city_pairs(seed: int) -> dict[str, str]:
    """Each swapped city and the other of its pair."""
    chance, pairs = torch.Generator().manual_seed(seed), dict[str, str]()
    for kind in ("state", "country"):
        entities = [one for one in world.entities() if one.kind == kind]
        chosen = torch.randperm(len(entities), generator=chance)[:SWAPPED].tolist()
        for first, second in zip(chosen[::2], chosen[1::2], strict=True):
            left, right = entities[first].open_cities[-1], entities[second].open_cities[-1]
            pairs |= {left: right, right: left}
    return pairs


def moved(model: LlamaForCausalLM, tuned: LlamaForCausalLM) -> float:
    """Mean over the matrices of MLPs of how far the training has moved them, as a share of their norm."""
    pairs = zip(tuned.named_parameters(), model.named_parameters(), strict=True)
    return fmean(
        float((new - old).detach().norm() / old.detach().norm()) for (name, new), (_, old) in pairs if "mlp" in name
    )


def nmse(folder: Path, contexts: Contexts) -> float:
    """Mean over layers of the error of a dictionary's files, each context once."""
    y_LND = contexts.y_LND
    error_LND = reconstruct(load_dictionary(folder), contexts.x_LND) - y_LND
    spread_L = (y_LND - y_LND.mean(1, keepdim=True)).square().sum((1, 2))
    return float((error_LND.square().sum((1, 2)) / spread_L).mean())


def trained(subject: Subject, recipe: TranscoderRecipe, seed: int, base: Path | None) -> float:
    """Train by the recipe, from drawn weights or from the files of ``base``; NMSE of what was written."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        config = configuration(recipe, seed, place)
        state, draws = initial_state(subject.training, config, recipe), Draws(subject.training, recipe, seed)
        if base is not None:
            take_over_(state, open_origin(str(base), lambda found: found), range(state.dictionary.n_layers))
        Loop(config, state, draws, FeatureRanks(), NullListener(), place, {}).run()
        publish(config, state, draws, place / "transcoder", place / "checkpoints", MODEL_NAME)
        return nmse(place / "transcoder", subject.held_out)


def shortened(recipe: TranscoderRecipe, steps: int) -> TranscoderRecipe:
    """The recipe for so many steps, at most a tenth of them warm-up."""
    return replace(recipe, steps=steps, warmup_steps=min(recipe.warmup_steps, steps // 10))


def one_seed(seed: int, cold_steps: int) -> dict[str, Any]:
    """A fine-tuned model, and cold and warm runs on it."""
    model, tokenizer = load_model(demo_folder() / "model")
    base, recipe = demo_folder() / "transcoder", TranscoderRecipe()
    pairs = city_pairs(seed)
    change = swapped_cities(pairs)
    tuned = tune(model, tokenizer, change, seed, TUNING)
    ids = encode_statements(tokenizer, change.changed)
    with torch.no_grad():
        before_tuning, after_tuning = (float(loss(each, ids, tokenizer)) for each in (model, tuned))
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    held_out = collect(tuned, encode_statements(tokenizer, [swapped(one, pairs) for one in world.held_out()]), stop)
    ids_SP = encode_statements(tokenizer, [swapped(one, pairs) for one in world.transcoder_training()])
    subject = Subject(with_jittered(tuned, ids_SP, stop, recipe.jitter, recipe.copies, seed), held_out)
    before = collect(model, encode_statements(tokenizer, world.held_out()), stop)
    found: dict[str, Any] = {
        "seed": seed,
        "mlp_weights_moved": moved(model, tuned),
        "loss_on_swapped_before": before_tuning,
        "loss_on_swapped_after": after_tuning,
        "base_on_base": nmse(base, before),
        "base_on_tuned": nmse(base, held_out),
    }
    print(f"seed {seed}: {found}", flush=True)
    for start, folder in (("cold", None), ("warm", base)):
        found[start] = {}
        for share in SHARES[start]:
            steps = cold_steps // share
            found[start][steps] = trained(subject, shortened(recipe, steps), seed, folder)
            print(f"  {start}, {steps * recipe.batch} contexts: NMSE {found[start][steps]:.4f}", flush=True)
    goal = found["cold"][cold_steps]
    reached = [steps for steps, value in found["warm"].items() if value <= goal]
    found["share_of_tokens_needed"] = min(reached) / cold_steps if reached else None
    return found


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cold-steps", type=int, default=COLD_STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "training_warm_start.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = [one_seed(seed, args.cold_steps) for seed in args.seeds]
    batch = TranscoderRecipe().batch
    settings = {
        "cold_steps": args.cold_steps,
        "contexts_a_step": batch,
        "swapped_pairs": SWAPPED,
        "tuning": asdict(TUNING),
    }
    write_results(args.results, describe(versions={"ours": versions()}, settings=settings) | {"runs": runs})
    print(f"warm starts need {[run['share_of_tokens_needed'] for run in runs]} of the tokens")


if __name__ == "__main__":
    main()
