"""Interventions on some prompts by one engine; `interventions.py` runs both and compares.

    PEER/bin/python benchmarks/peer/run_interventions.py --model FOLDER --transcoders FOLDER --out FILE
    python -m benchmarks.comparison.interventions_run --model FOLDER --transcoders FOLDER --out FILE

On each prompt the strongest feature of each layer in LAYERS, at the last token, is set to STRENGTH times its activation.
FILE (safetensors): PROMPT/CASE/logits (P, V) and /activations (L, P, F); for generations /ids (P + G,) and /logits (G, V);
PROMPT/clean/...; PROMPT/features (layer, feature) pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.harness import read_prompts, versions
from benchmarks.common.places import PROMPTS

LAYERS = (3, 11, 19)
STRENGTH = 6.0
HELD = range(8, 20)
CASES: dict[str, dict[str, Any]] = {
    "attention frozen": {},
    "attention live": {"freeze_attention": False},
    "layers 8 to 19 held": {"constrained_layers": HELD},
    "all layers held": {"constrained_layers": range(30)},
}
GENERATED = 12
GENERATION = {"max_new_tokens": GENERATED, "do_sample": False, "stop_at_eos": False, "verbose": False}
STEERED = "steered, attention live"
GENERATIONS: dict[str, dict[str, Any]] = {
    "generated, attention frozen": {},
    STEERED: {"freeze_attention": False},
    "generated, layers 8 to 19 held": {"constrained_layers": HELD},
}


def strongest(activations_LPF: Tensor) -> list[tuple[int, int, float]]:
    """(layer, feature, activation) of the strongest feature of each layer in LAYERS at the last token."""
    found = []
    for layer in LAYERS:
        value, feature = activations_LPF[layer, -1].max(0)
        found.append((layer, int(feature), float(value)))
    return found


def outcomes(model: Any, ids: Tensor, steer: Callable[[Any, Tensor, list[Any]], Tensor] | None) -> dict[str, Tensor]:
    """All cases of one prompt. steer: this package's other way to generate with features set, None for circuit-tracer."""
    logits, activations = model.get_activations(ids)
    chosen = strongest(activations)
    found = {"clean/logits": logits[0], "clean/activations": activations}
    found["features"] = torch.tensor([(layer, feature) for layer, feature, _ in chosen])
    last = len(ids) - 1
    interventions = [(layer, last, feature, STRENGTH * value) for layer, feature, value in chosen]
    for name, options in CASES.items():
        logits, activations = model.feature_intervention(ids, interventions, **options)
        found |= {f"{name}/logits": logits[0], f"{name}/activations": activations}
    lasting = [(layer, slice(last, None), feature, value) for layer, _, feature, value in interventions]
    for name, options in GENERATIONS.items():
        if steer is not None and name == STEERED:
            found[f"{name}/steer ids"] = steer(model, ids, interventions)
        inputs, more = ids[None], {}
        if steer is None and not options.get("freeze_attention", True):  # known_differences.py, "live-generation"
            inputs, more = model.tokenizer.decode(ids), {"prepend_bos": False}
            assert model.tokenizer(inputs, add_special_tokens=False).input_ids == ids.tolist()
        text, logits, activations = model.feature_intervention_generate(
            inputs, lasting, **options, **GENERATION, **more
        )
        # circuit-tracer gives ids for ids, this package always text: the chosen tokens are in the logits of both
        generated = logits.reshape(-1, logits.shape[-1]).argmax(-1)
        found |= {f"{name}/ids": torch.cat([ids, generated.cpu()]), f"{name}/logits": logits.reshape(GENERATED, -1)}
        found[f"{name}/activations"] = activations
        if not isinstance(text, str):
            assert text[0].tolist() == found[f"{name}/ids"].tolist()
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def our_steer(model: Any, ids: Tensor, interventions: list[Any]) -> Tensor:
    """The same with `steer`: ids of prompt and generated tokens."""
    from circuit_tracer.interventions import Sampling, set_to, steer

    edits = [
        set_to((layer, feature), value, at=place)
        for layer, position, feature, value in interventions
        for place in (position, "generated")
    ]
    result = steer(model, ids, edits, Sampling(GENERATED, stop_at_eos=False), compare=False)
    return torch.cat([ids, result.steered.ids])


def load_ours(folder: Path, transcoders: Path) -> tuple[Any, Any]:
    """(model, tokenizer)"""
    from circuit_tracer import ReplacementModel

    model = ReplacementModel.from_pretrained(str(folder), str(transcoders), device="cpu", dtype=torch.float32)
    return model, model.tokenizer


def run(
    engine: str,
    load: Callable[[Path, Path], tuple[Any, Any]],
    steer: Callable[[Any, Tensor, list[Any]], Tensor] | None = None,
) -> None:
    """What the command line asks for, by the engine whose model and tokenizer `load` gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["france", "code"], help="names out of prompts.json")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model, args.transcoders)
    found: dict[str, Tensor] = {}
    start = time.perf_counter()
    for name, prompt in read_prompts(PROMPTS, args.only, tokenizer).items():
        ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids])
        found |= {f"{name}/{key}": tensor for key, tensor in outcomes(model, ids, steer).items()}
        print(f"{engine} {args.transcoders.name} {name}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    seconds = round(time.perf_counter() - start, 1)
    save_file(found, args.out, {"versions": json.dumps(versions()), "seconds": str(seconds)})


if __name__ == "__main__":
    run("ours", load_ours, our_steer)
