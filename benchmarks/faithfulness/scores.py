"""What graph scores do not see: the demo's dictionary changed by hand, measured again. The table of evaluation/README.md §3.

python -m benchmarks.faithfulness.scores        # a minute or two
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.show import load_demo
from circuit_tracer.training.evaluation import EvaluationSettings, evaluate
from circuit_tracer.training.evaluation.results import DICTIONARY
from circuit_tracer.transcoders import CrossLayerTranscoder, Transcoders
from circuit_tracer.transcoders.activations import JumpReLU
from circuit_tracer.transcoders.layer_weights import LayerWeights

SETTINGS = EvaluationSettings(held_out_prompts=10, random_baseline=False)
COLUMNS = ("mean_nmse", "kl", "top1", "replacement", "completeness", "edges_live", "groups_live")


def changed(like: Transcoders, copies: int, decoder: tuple[float, ...], noise: tuple[float, ...]) -> Transcoders:
    """Every feature `copies` times, the i-th writing decoder[i] times its row plus noise[i] times a random row as long."""
    generator, layers = torch.Generator().manual_seed(0), []
    for layer in range(like.n_layers):
        row_FTD = like.decoder(layer).whole()
        drawn_FTD = torch.randn(row_FTD.shape, generator=generator)
        drawn_FTD *= _length(row_FTD) / _length(drawn_FTD)
        activation = like.activation(layer)
        assert isinstance(activation, JumpReLU)
        layers.append(
            LayerWeights(
                source=f"layer {layer}",
                encoder=like.encoder(layer).whole().repeat(copies, 1),
                decoder=torch.cat([a * row_FTD + b * drawn_FTD for a, b in zip(decoder, noise, strict=True)]),
                encoder_bias=like.encoder_bias(layer).repeat(copies),
                decoder_bias=like.decoder_bias(layer),
                threshold=activation.threshold.detach().repeat(copies),
            )
        )
    return CrossLayerTranscoder.from_weights(
        layers,
        feature_input_hook=like.feature_input_hook,
        feature_output_hook=like.feature_output_hook,
        scan=None,
        device="cpu",
        dtype=torch.float32,
    )


def _length(row_FTD: Tensor) -> Tensor:
    length_F: Tensor = row_FTD.flatten(1).norm(dim=1)
    return length_F[:, None, None]


def main() -> None:
    """Print the table."""
    model = load_demo()
    end = model.tokenizer.eos_token_id
    ids = [torch.tensor([*model.tokenizer(one.text).input_ids, end]) for one in world.held_out()]
    subjects = {
        "as it is": model.transcoders,
        "each feature as two that cancel": changed(model.transcoders, 2, (0.5, 0.5), (2.0, -2.0)),
        "noise as long as decoders": changed(model.transcoders, 1, (1.0,), (1.0,)),
        "decoders times 0.7": changed(model.transcoders, 1, (0.7,), (0.0,)),
    }
    print(f"{'':<34}" + "".join(f"{name:>18}" for name in COLUMNS))
    for name, transcoders in subjects.items():
        found = evaluate(model.parts, model.tokenizer, transcoders, ids, SETTINGS).results[DICTIONARY].estimates
        cells = [f"{found[each].value:.3f} ± {found[each].value - found[each].interval[0]:.3f}" for each in COLUMNS]
        print(f"{name:<34}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
