"""circuit-tracer 0.5.0 on a Llama-class Hugging Face folder and a local transcoder folder, without any network.

Runs inside the virtual environment that setup_peer.sh makes; writes the records described in ../common/harness.py.

    PEER/bin/python benchmarks/peer/run_peer.py --model FOLDER --transcoders FOLDER --out FOLDER [--only NAME ...]

circuit-tracer loads models by TransformerLens' list of names and transcoders from the hub. Neither knows ours, so the
TransformerLens configuration is written by hand, the weights go through its own Llama converter, and the transcoders
through circuit-tracer's own loaders for a local file. The attribution is untouched.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.harness import parser, run

EXPECTED = "0.5.0"
CONTEXT = 512


def load_transcoders(folder: Path, device: torch.device) -> Any:
    """The folder's CLT or per-layer set, fp32, lazy as `from_pretrained` has it: encoder in memory, decoder on disk."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((folder / "config.yaml").read_text())
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook", "scan")}
    options = {"device": device, "dtype": torch.float32, "lazy_encoder": False, "lazy_decoder": True}
    if config["model_kind"] == "cross_layer_transcoder":
        return load_clt(str(folder), **hooks, **options)
    paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(len(list(folder.glob("layer_*"))))}
    return load_transcoder_set(paths, **hooks, **options)


def load_model(folder: Path, transcoders: Any, tokenizer: Any, device: torch.device) -> tuple[Any, float]:
    """The replacement model, and the largest difference of its logits from transformers' on a short prompt."""
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    c = hf.config
    d_head = c.hidden_size // c.num_attention_heads
    cfg = HookedTransformerConfig(
        d_model=c.hidden_size,
        d_head=d_head,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        n_layers=c.num_hidden_layers,
        n_ctx=CONTEXT,
        d_vocab=c.vocab_size,
        eps=c.rms_norm_eps,
        act_fn=c.hidden_act,
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=d_head,
        rotary_base=int(c.rope_theta),
        original_architecture="LlamaForCausalLM",
        model_name=folder.name,
        tokenizer_name=str(folder),
        device=str(device),
        dtype=torch.float32,
    )
    model = TransformerLensReplacementModel(cfg, tokenizer)
    no_folding = {
        "fold_ln": False,
        "center_writing_weights": False,
        "center_unembed": False,
        "fold_value_biases": False,
    }
    model.load_and_process_state_dict(convert_llama_weights(hf, cfg), **no_folding)
    model._configure_replacement_model(transcoders)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("The capital of France is").input_ids]], device=device)
    with torch.no_grad():
        difference = float((model(ids) - hf(ids).logits).abs().max())
    del hf
    gc.collect()
    return model, difference


def main() -> None:
    args = parser(__doc__).parse_args()
    if version("circuit-tracer") != EXPECTED:
        raise SystemExit(f"circuit-tracer {EXPECTED} expected, found {version('circuit-tracer')}: use setup_peer.sh")
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph
    from circuit_tracer.utils.create_graph_files import create_graph_files

    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    device = torch.device(args.device)
    model, difference = load_model(args.model, load_transcoders(args.transcoders, device), tokenizer, device)
    print(f"TransformerLens logits differ from transformers' by at most {difference:.1e}", flush=True)
    if not difference < 1e-2:
        raise SystemExit("the converted model is not the model: nothing can be compared")
    api = SimpleNamespace(
        attribute=attribute,
        prune_graph=prune_graph,
        compute_graph_scores=compute_graph_scores,
        compute_node_influence=compute_node_influence,
        create_graph_files=create_graph_files,
    )
    run("peer", args, model, tokenizer, api)


if __name__ == "__main__":
    main()
