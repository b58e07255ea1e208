"""Traces a file of prompts on Modal: a container with a GPU for each share, results in a volume.

    pip install modal && modal setup
    modal run examples/modal_run.py --prompts prompts.jsonl --name x --shards 4 --options "-t HUB-ID -m HUB-ID"
    modal volume get circuit-tracer-runs x runs/x

Options are those of `circuit-tracer run`. The same command goes on after an interruption, and with rows that were added since.
Run it from a checkout of this repository, which is copied into the containers. For models behind a login, make a Modal secret
with HF_TOKEN in it, and name it in `secrets=[modal.Secret.from_name("...")]` below.
"""

import shlex
import subprocess
from pathlib import Path

import modal

GPU = "L40S"
HOURS = 12
CHECKOUT = Path(__file__).parents[1]
RUNS, CACHE = "/runs", "/root/.cache/huggingface"

runs = modal.Volume.from_name("circuit-tracer-runs", create_if_missing=True)
cache = modal.Volume.from_name("circuit-tracer-hub", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.12")
    .add_local_dir(CHECKOUT, "/src", copy=True, ignore=["**/.*", "**/__pycache__", "runs"])
    .run_commands("pip install -c /src/constraints.txt torch", "pip install -c /src/constraints.txt '/src[many]'")
)
app = modal.App("circuit-tracer-run", image=image)


@app.function(gpu=GPU, volumes={RUNS: runs, CACHE: cache}, timeout=HOURS * 3600, retries=2)
def trace(prompts: bytes, file_name: str, name: str, shard: str, options: list[str]) -> None:
    """Trace a share, such as 0/4. A container that Modal takes away is started again, and goes on."""
    runs.reload()
    file = Path("/tmp") / file_name
    file.write_bytes(prompts)
    try:
        subprocess.run(
            ["circuit-tracer", "run", str(file), "-o", f"{RUNS}/{name}", "--shard", shard, *options], check=True
        )
    finally:
        runs.commit()


@app.local_entrypoint()
def main(prompts: str, name: str, shards: int = 4, options: str = "") -> None:
    """Begin the run, trace all shares side by side, and make the table of all of them."""
    file, words = Path(prompts), shlex.split(options)
    given = (file.read_bytes(), file.name, name)
    list(trace.starmap([(*given, f"{number}/{shards}", words) for number in range(shards)]))
    trace.remote(*given, "0/1", words)
