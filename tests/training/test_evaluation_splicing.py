"""Autoencoders in the stream, against a hook written plainly; and from the files that a run leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.capture import logits_at
from circuit_tracer.training.evaluation import EvaluationSettings, evaluate, model_card
from circuit_tracer.training.evaluation.results import DICTIONARY
from circuit_tracer.training.evaluation.tables import summary_table
from tests.support.evaluation_cases import ALL_TOKENS, parts_of, sequences
from tests.support.tiny import tiny_transcoder

LAYERS = (0, 2)


def spliced_logits(parts: Any, point: str, layer: int, ids: Tensor, stand_in: Any) -> Tensor:
    """Log-probabilities of a pass with torch's own hooks at one block, from position 1 on."""

    def change(stream: Tensor) -> Tensor:
        return torch.cat([stream[:, :1], stand_in(stream[:, 1:])], dim=1)

    block = parts.layers[layer].module
    if point == "hook_resid_pre":
        hook = block.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    else:

        def after(module: Any, args: Any, output: Any) -> Any:
            return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

        hook = block.register_forward_hook(after)
    try:
        final = parts.model.base_model(input_ids=ids[None]).last_hidden_state[0]
    finally:
        hook.remove()
    return logits_at(parts, final.double())[1:-1].log_softmax(-1)


@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_post"])
def test_the_stream_is_replaced_at_one_layer_at_a_time(point: str) -> None:
    parts, tokens = parts_of(), sequences(4)
    saes = tiny_transcoder("plt", n_layers=2, input_hook=point, output_hook=point)
    settings = replace(ALL_TOKENS, prompts=("a",), held_out_prompts=3)
    found = evaluate(parts, None, saes, tokens, settings, layers=LAYERS)
    hidden = [parts.model.base_model(input_ids=ids[None], output_hidden_states=True).hidden_states for ids in tokens]
    for source, layer in enumerate(LAYERS):
        if layer == 2 and point == "hook_resid_post":
            continue  # transformers keeps the last stream behind the norm
        stream = torch.cat([one[layer + (point == "hook_resid_post")][0, 1:] for one in hidden]).double()
        mean = stream.mean(0)
        kinds = {
            "dictionary": lambda x, source=source: saes[source](x.double()).to(x),
            "zero": torch.zeros_like,
            "mean": lambda x, mean=mean: mean.to(x).expand_as(x),
        }
        own = torch.cat([spliced_logits(parts, point, layer, ids, lambda x: x) for ids in tokens])
        truth = torch.cat([ids[2:] for ids in tokens])
        entropy = {"model": -float(own[range(len(truth)), truth].mean())}
        for name, stand_in in kinds.items():
            other = torch.cat([spliced_logits(parts, point, layer, ids, stand_in) for ids in tokens])
            entropy[name] = -float(other[range(len(truth)), truth].mean())
            one = found.results[DICTIONARY].spliced[source]
            one = one if name == "dictionary" else found.spliced_ablations[name][source]
            assert one.cross_entropy == pytest.approx(entropy[name], rel=1e-5)
            assert one.kl == pytest.approx(float((own.exp() * (own - other)).sum(-1).mean()), rel=1e-4, abs=1e-7)
            assert one.top1 == pytest.approx(float((own.argmax(-1) == other.argmax(-1)).double().mean()))
        one = found.results[DICTIONARY].spliced[source]
        for recovered, lost in ((one.ce_recovered, "zero"), (one.ce_recovered_from_mean, "mean")):
            expected = (entropy[lost] - entropy["dictionary"]) / (entropy[lost] - entropy["model"])
            assert recovered == pytest.approx(expected, rel=1e-3)
    assert found.not_measured == [
        "Graphs of prompts: an autoencoder replaces no MLP, so no prompt can be traced with it."
    ]
    assert found.to_json()["results"]["dictionary"]["spliced"][1]["intervals"]["kl"]["units"] == 4


def test_the_card_of_an_autoencoder_names_commands_that_exist() -> None:
    saes = tiny_transcoder("plt", n_layers=2, input_hook="hook_resid_post", output_hook="hook_resid_post")
    settings = replace(ALL_TOKENS, random_baseline=True, held_out_prompts=1)
    found = evaluate(parts_of(), None, saes, sequences(), settings, layers=LAYERS)
    card = model_card(found)
    assert "circuit-tracer evaluate -m" in card
    assert "attribute" not in card
    assert "## Spliced into the stream" in card
    assert "## Not measured" in card
    assert "stream zero | stream mean" in summary_table(found)
    assert "nan" not in card


def test_at_the_input_of_the_mlp_there_is_no_stream_to_replace() -> None:
    saes = tiny_transcoder("plt", n_layers=2, input_hook="hook_resid_mid", output_hook="hook_resid_mid")
    found = evaluate(parts_of(), None, saes, sequences(), ALL_TOKENS, layers=LAYERS)
    assert found.model is None
    assert "hook_resid_mid is not the stream that goes on" in found.not_measured[0]
    with pytest.raises(InputError, match="no transcoders are measured beside"):
        evaluate(parts_of(), None, saes, sequences(), ALL_TOKENS, layers=LAYERS, per_layer=tiny_transcoder("plt"))


def test_without_tokens_to_replace_only_reconstruction_is_measured() -> None:
    saes = tiny_transcoder("plt", n_layers=1, input_hook="hook_resid_pre", output_hook="hook_resid_pre")
    found = evaluate(
        parts_of(), None, saes, sequences(), EvaluationSettings(replacement_tokens=0, random_baseline=False), layers=[1]
    )
    assert found.model is None
    assert found.results[DICTIONARY].spliced == []
