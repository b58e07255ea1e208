"""Makes the data of `test_interventions_peer.py`: what circuit-tracer 0.5.0 does on a tiny model.

python tests/interventions/record_peer.py inputs               # in this project's environment
PEER/bin/python tests/interventions/record_peer.py outputs     # in the one that benchmarks/peer/setup_peer.sh makes
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

from tests.support.peer_cases import FOLDER, IDS, OUTPUTS, TRANSCODERS, outcomes


def inputs() -> None:
    """Write the model, its tokenizer and the transcoders."""
    from circuit_tracer.transcoders import save_transcoders
    from tests.support.command import save_tokenizer
    from tests.support.tiny import tiny_model, tiny_transcoder

    tiny_model("llama", torch.float32).save_pretrained(FOLDER / "model")
    save_tokenizer(FOLDER / "model")
    # transformers 4, which circuit-tracer needs, knows the class by its old name only
    config = FOLDER / "model" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for name in TRANSCODERS:
        transcoder = tiny_transcoder(name[:3], torch.float32, activation="jump_relu", skip="skip" in name)
        transcoder.scan = name
        save_transcoders(transcoder, FOLDER / name)


def outputs() -> None:
    """Run circuit-tracer on them."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from benchmarks.peer.run_peer import load_model, load_transcoders

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    found: dict[str, torch.Tensor] = {}
    cpu = torch.device("cpu")
    for name in TRANSCODERS:
        model, difference = load_model(FOLDER / "model", load_transcoders(FOLDER / name, cpu), tokenizer, cpu)
        print(f"{name}: TransformerLens logits differ from transformers' by at most {difference:.1e}")
        found |= outcomes(model, torch.tensor(IDS), name)
    save_file(found, OUTPUTS)


if __name__ == "__main__":
    {"inputs": inputs, "outputs": outputs}[sys.argv[1]]()
