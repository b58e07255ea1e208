"""One process from its start to a trace: import, model and dictionary ready, first and second call. Prints one json line.

    python -m benchmarks.tracing.ready_once --started $(date +%s.%N) [--model FOLDER --transcoders FOLDER --rows 512]

Seconds are counted from ``--started``, when whoever measures started the process. Without a model it is the embedded default.
`dictionary_mapped` is what of the dictionary's files is in this process' memory when it is ready (Linux); encoders are copied, and
their mapping is gone by then.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = "the capital of the state containing Dallas is"  # a prompt of the embedded default's world


def mapped_bytes(folder: Path) -> int:
    """Resident pages of this process that are of files in a folder."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=5)
        if "-" in first[0] and not first[0].endswith(":"):
            inside = len(first) == 6 and Path(first[5]).parent == folder
        elif inside and first[0] == "Rss:":
            held += int(first[1]) * 1024
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--started", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--transcoders", type=Path)
    parser.add_argument("--prompt", default="long-25", help="of the prompts; the embedded default has its own")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    from circuit_tracer import ReplacementModel, attribute
    from circuit_tracer.demo import MODEL, TRANSCODER

    imported = time.time() - args.started
    folder = args.transcoders or Path(TRANSCODER)
    model = ReplacementModel.from_pretrained(str(args.model or MODEL), str(folder))
    ready = time.time() - args.started
    held = mapped_bytes(folder.resolve())

    # what measures is imported behind what is measured
    import torch

    from benchmarks.common.harness import measure, read_prompts
    from benchmarks.common.places import PROMPTS

    torch.set_num_threads(args.threads)
    prompt = WORDS if args.model is None else read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    calls = [measure(lambda: attribute(prompt, model, max_feature_nodes=args.rows)) for _ in range(2)]
    print(
        json.dumps(
            {
                "imported": imported,
                "ready": ready,
                "first": calls[0][1],
                "second": calls[1][1],
                "dictionary_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
                "dictionary_mapped": held,
                "tokens": calls[0][0].n_pos,
                "residual": max(graph.residual for graph, _ in calls),
            }
        )
    )


if __name__ == "__main__":
    main()
