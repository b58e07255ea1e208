"""Is this checkout as fast as another one? Both trace the same prompt and train the same dictionary, in turns, in the same run.

    python -m benchmarks.checkouts --before CHECKOUT --model FOLDER --transcoders FOLDER [--results NAME.json]

Each turn is a process of its own, in the environment that `make install` made in that checkout, and uses nothing but the
package's public names and command line, so that any two of its versions can be compared. What both computed must be equal: a
graph's edges and selected features to the bit, and a trained dictionary's files. Reported are medians of all turns, and the
median over pairs of turns of after / before, wall clock and processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS, ROOT

TURNS = 10
TRACE = """
import hashlib, json, sys, time
import torch
torch.set_num_threads(2)
from circuit_tracer import ReplacementModel, attribute
model = ReplacementModel.from_pretrained(sys.argv[1], sys.argv[2], device="cpu")
prompt = "Fact: the capital of the state containing the city of Dallas, which lies in the south, is"
attribute(prompt, model, max_feature_nodes=512, batch_size=256)
wall, processor = time.perf_counter(), time.process_time()
for _ in range(5):
    graph = attribute(prompt, model, max_feature_nodes=512, batch_size=256)
wall, processor = time.perf_counter() - wall, time.process_time() - processor
digest = hashlib.sha256(graph.edges.weight.numpy().tobytes() + graph.selected_features.numpy().tobytes()).hexdigest()
print(json.dumps({"wall": wall / 5, "processor": processor / 5, "digest": digest}))
"""
TRAIN = """
import hashlib, json, pathlib, sys, time
import torch
torch.set_num_threads(2)
from typer.testing import CliRunner
from circuit_tracer.cli.main import app
from circuit_tracer.demo import MODEL, world
folder = pathlib.Path(sys.argv[1])
lines = [json.dumps({"text": one.text}) for one in world.held_out() for _ in range(40)]
(folder / "texts.jsonl").write_text("\\n".join(lines))
given = {"model.name": MODEL, "data.kind": "jsonl", "data.path": folder / "texts.jsonl", "data.context_length": 32,
         "data.epochs": "null", "data.buffer_tokens": 4096, "dictionary.features": 256, "sparsity.active": 8,
         "run.tokens": 32768, "run.batch": 1024,
         "optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 10, "evaluation.every_steps": 0, "model.device": "cpu"}
def train(out):
    options = [word for key, value in {**given, "run.out": out}.items() for word in ("--" + key.replace("_", "-"), str(value))]
    done = CliRunner().invoke(app, ["train", sys.argv[2], *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
train(folder / "first")  # what is imported at first use is
wall, processor = time.perf_counter(), time.process_time()
train(folder / "out")
wall, processor = time.perf_counter() - wall, time.process_time() - processor
files = sorted((folder / "out" / "transcoder").glob("*.safetensors"))
digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
print(json.dumps({"wall": wall, "processor": processor, "digest": digest}))
"""


def turn(checkout: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a script prints in a checkout's environment, as JSON."""
    python, environment = str(checkout / ".venv" / "bin" / "python"), {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", script, *(arguments or (folder, "pythia-70m"))]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{checkout.name} ended with status {ended.returncode}:\n{ended.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def compare(before: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Seconds of both checkouts, and their ratio; SystemExit if they computed different things."""
    turns = []
    for number in range(TURNS):  # a machine's speed drifts: each pair runs close together, and who is first alternates
        order = (before, ROOT) if number % 2 else (ROOT, before)
        pair = {checkout: turn(checkout, script, *arguments) for checkout in order}
        turns.append((pair[before], pair[ROOT]))
    if len({each["digest"] for pair in turns for each in pair}) > 1:
        raise SystemExit("the checkouts computed different things, so their speed is not compared")
    seconds, ratio = {}, {}
    for clock in ("wall", "processor"):
        seconds[clock] = [round(statistics.median(pair[side][clock] for pair in turns), 4) for side in (0, 1)]
        ratio[clock] = round(statistics.median(after[clock] / earlier[clock] for earlier, after in turns), 4)
    return {"before_after_seconds": seconds, "ratio": ratio, "turns": TURNS, "equal": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--model", required=True)
    parser.add_argument("--transcoders", required=True)
    parser.add_argument("--results", default=None, help="name of the record in benchmarks/results/")
    arguments = parser.parse_args()
    git = ["git", "-C", str(arguments.before), "rev-parse", "--short", "HEAD"]
    model, transcoders = (str(Path(each).resolve()) for each in (arguments.model, arguments.transcoders))
    results = describe(
        before=subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        trace=compare(arguments.before.resolve(), TRACE, model, transcoders),
        train=compare(arguments.before.resolve(), TRAIN),
    )
    print(json.dumps(results, indent=1))
    if arguments.results:
        write_results(RESULTS / arguments.results, results)


if __name__ == "__main__":
    main()
