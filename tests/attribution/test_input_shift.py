"""Older skip transcoders do not say whether they subtract b_dec from their input: it is measured, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.errors import InputError
from circuit_tracer.transcoders import load_transcoder, load_transcoder_from_hub, save_transcoders
from tests.support.data_cases import tokenizer
from tests.support.evaluation_cases import perfect_pair


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[bool, Path]]:
    """A model, and its own MLPs as files in the older layout: by whether they subtract b_dec from the input."""
    parts, whole = perfect_pair("plt")
    made = {}
    for shifted in (False, True):
        made[shifted] = tmp_path_factory.mktemp("shifted" if shifted else "plain")
        for layer in range(3):
            one, place = whole[layer], made[shifted] / f"layers.{layer}.mlp"
            bias = one.b_enc + (one.W_enc @ one.b_dec if shifted else 0)
            tensors = {"encoder.weight": one.W_enc, "encoder.bias": bias, "W_dec": one.W_dec, "b_dec": one.b_dec}
            place.mkdir()
            tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
            save_file(tensors | {"W_skip": torch.zeros(16, 16, dtype=torch.float64)}, place / "sae.safetensors")
            said = {"d_in": 16, "k": 24, "expansion_factor": 2, "num_latents": 24, "skip_connection": True}
            (place / "cfg.json").write_text(json.dumps(said))
    return parts.model, made


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
def test_the_better_reconstruction_decides_and_is_said(folders, shifted):
    model, made = folders
    transcoders, _ = load_transcoder_from_hub(made[shifted], dtype=None)
    with pytest.warns(UserWarning, match=f"they are taken {'to' if shifted else 'not to'}") as said:
        replaced = ReplacementModel.from_model(model, transcoders, tokenizer(), "gpt2")
    assert f"NMSE is {'' if shifted else '0.000 without'}" in str(said[0].message)
    graph = attribute("an old word", replaced, max_n_logits=2)
    assert float(graph.reconstruction.nmse.max()) < 1e-9
    told, _ = load_transcoder_from_hub(made[shifted], dtype=None, input_shift=shifted)
    for layer in range(3):
        torch.testing.assert_close(told[layer].b_enc, replaced.transcoders[layer].b_enc)


def test_what_is_told_is_not_measured(folders, recwarn):
    model, made = folders
    told, _ = load_transcoder_from_hub(made[True], dtype=None, input_shift=True)
    ReplacementModel.from_model(model, told, None, "gpt2")
    assert not recwarn.list


def test_what_needs_to_know_asks(folders, tmp_path):
    model, made = folders
    transcoders, _ = load_transcoder_from_hub(made[True], dtype=None)
    with pytest.raises(InputError, match="give input_shift=True or False"):
        ReplacementModel.from_model(model, transcoders, None, "gpt2")
    with pytest.raises(InputError, match="--input-shift or --no-input-shift"):
        save_transcoders(transcoders, tmp_path)
    with pytest.raises(InputError, match="does not say whether the transcoder subtracts b_dec"):
        load_transcoder(made[True] / "layers.0.mlp" / "sae.safetensors", 0)
