"""The training code on a tiny configuration: the loss falls, seeds decide, and the exported dictionary is the trained one."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from circuit_tracer.demo import recipe, world
from circuit_tracer.demo.dictionary import DenseTranscoder
from circuit_tracer.demo.tokenizer import build_tokenizer
from circuit_tracer.demo.train_clt import Activations, Trainee, TranscoderRecipe, train_transcoder
from circuit_tracer.demo.train_model import ModelRecipe, train_model
from circuit_tracer.errors import InputError

TINY_MODEL = ModelRecipe(n_layers=2, d_model=16, d_mlp=32, n_heads=2, steps=250, batch=16, warmup=10)
TINY = TranscoderRecipe(n_features=32, active=4, active_at_start=8, steps=250, batch=64, plantings=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def activations(n_contexts: int = 200, n_layers: int = 3, d_model: int = 8) -> Activations:
    """Inputs with offsets and scales of their own, outputs a fixed function of them."""
    chance = torch.Generator().manual_seed(0)
    x_LND = torch.randn(n_layers, n_contexts, d_model, generator=chance) * torch.tensor([0.1, 3.0, 20.0])[:, None, None]
    x_LND += torch.randn(n_layers, 1, d_model, generator=chance)
    mix_LDD = torch.randn(n_layers, d_model, d_model, generator=chance)
    return Activations(
        x_LND, torch.relu(x_LND @ mix_LDD) + 2.0, torch.ones(n_contexts), [(row,) for row in range(n_contexts)]
    )


def losses(lines: list[str]) -> list[float]:
    return [sum(map(float, re.findall(r"\d+\.\d+", line))) for line in lines]


def test_the_models_loss_falls_its_first_attention_stays_silent_and_its_embedding_short(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    lines: list[str] = []
    model = train_model(tokenizer, world.skills(), replace(TINY_MODEL, steps=300), 0, lines.append)
    assert losses(lines)[0] < 0.6 * math.log(len(tokenizer))  # the loss of a model that knows nothing
    assert model.model.layers[0].self_attn.o_proj.weight.abs().max() == 0
    norms_V = model.model.embed_tokens.weight.norm(dim=1)
    torch.testing.assert_close(norms_V, torch.full_like(norms_V, TINY_MODEL.embedding_norm))


def test_a_seed_decides_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    short = replace(TINY_MODEL, steps=5)
    one, same, other = (train_model(tokenizer, world.skills(), short, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_transcoder_learns_and_keeps_to_its_number_of_active_features() -> None:
    data = activations()
    untrained = train_transcoder(data, replace(TINY, steps=1), 0)
    trained = train_transcoder(data, replace(TINY, steps=600), 0)

    def error(transcoder: DenseTranscoder) -> float:
        return (transcoder.reconstruct(data.x_LND) - data.y_LND).square().sum().item()

    assert error(trained) < 0.5 * error(untrained)
    active = sum(
        (trained.encode(layer, x_ND) > 0).sum(1).float().mean().item() for layer, x_ND in enumerate(data.x_LND)
    )
    assert active == pytest.approx(TINY.active, rel=0.15)


def test_folding_is_exact() -> None:
    torch.manual_seed(0)
    data = activations()
    trainee, cut = Trainee(data, TINY).double(), 1.5
    for name in ("mean_x_LD", "mean_y_LD", "scale_x_L", "scale_y_L"):
        setattr(trainee, name, getattr(trainee, name).double())
    with torch.no_grad():
        x_LBD, _ = trainee.normalise(data.x_LND.double(), data.y_LND.double())
        activation_LBF = trainee.encode(x_LBD)
        activation_LBF *= activation_LBF * trainee.decoder_norms()[:, None] > cut
        inside = trainee.decode(activation_LBF)
        expected = inside / trainee.scale_y_L[:, None, None] + trainee.mean_y_LD[:, None]
        folded = trainee.fold(cut)
    for layer in range(3):
        torch.testing.assert_close(
            folded.encode(layer, data.x_LND[layer]).double(), activation_LBF[layer], atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(folded.reconstruct(data.x_LND).double(), expected, atol=1e-4, rtol=1e-4)


def test_what_is_written_is_what_is_read_here_and_by_the_package(tmp_path: Path) -> None:
    from circuit_tracer.transcoders import load_transcoder_from_hub

    data = activations()
    trained = train_transcoder(data, TINY, 0).rounded()
    trained.save(tmp_path, "some-model")
    read = DenseTranscoder.load(tmp_path)
    torch.testing.assert_close(read.reconstruct(data.x_LND), trained.reconstruct(data.x_LND), rtol=0, atol=0)
    package, _ = load_transcoder_from_hub(str(tmp_path), dtype=torch.float32)
    for layer, x_ND in enumerate(data.x_LND):
        row, feature, value = package.encode_positions(layer, x_ND)
        dense_NF = torch.zeros(len(x_ND), trained.n_features)
        dense_NF[row, feature] = value
        torch.testing.assert_close(dense_NF, trained.encode(layer, x_ND), atol=1e-4, rtol=1e-4)


def test_the_recipe_writes_everything_and_search_takes_it_up(tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = recipe.train(
        tmp_path / "1-2",
        1,
        2,
        report=lines.append,
        model_recipe=replace(TINY_MODEL, steps=2),
        transcoder_recipe=replace(TINY, steps=20),
    )
    names = {file.name for file in (tmp_path / "1-2").iterdir()}
    assert names == {"model", "transcoder", "labels.json", "metrics.json", "README.md"}
    assert json.loads((tmp_path / "1-2" / "metrics.json").read_text(encoding="utf-8")) == metrics
    with pytest.raises(InputError, match="further seeds"):
        recipe.search(tmp_path, [(1, 2)], lines.append)
    with pytest.raises(InputError, match="another seed or recipe"):
        recipe.train(tmp_path / "1-2", 3, 2, report=lines.append, model_recipe=replace(TINY_MODEL, steps=2))
