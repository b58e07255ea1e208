"""The training code on a tiny configuration: the loss falls, seeds decide, and the exported dictionary is the trained one."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from circuit_tracer.demo import demo_folder, recipe, world
from circuit_tracer.demo.contexts import Contexts, collect, with_jittered
from circuit_tracer.demo.dictionary import load_dictionary, reconstruct
from circuit_tracer.demo.tokenizer import build_tokenizer
from circuit_tracer.demo.train_model import ModelRecipe, build_model, encode_statements, train_model
from circuit_tracer.demo.train_transcoder import Draws, TranscoderRecipe, train_transcoder
from circuit_tracer.errors import InputError
from circuit_tracer.transcoders import CrossLayerTranscoder

TINY_MODEL = ModelRecipe(n_layers=2, d_model=16, d_mlp=32, n_heads=2, steps=250, batch=16, warmup=10)
TINY = TranscoderRecipe(n_features=32, active=2.0, steps=250, batch=64, warmup_steps=0, dead_after=640, copies=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def contexts(n_contexts: int = 200, n_layers: int = 3, d_model: int = 8) -> Contexts:
    """Inputs with offsets and scales of their own, outputs a fixed function of them."""
    chance = torch.Generator().manual_seed(0)
    x_LND = torch.randn(n_layers, n_contexts, d_model, generator=chance) * torch.tensor([0.1, 3.0, 20.0])[:, None, None]
    x_LND += torch.randn(n_layers, 1, d_model, generator=chance)
    mix_LDD = torch.randn(n_layers, d_model, d_model, generator=chance)
    return Contexts(
        x_LND, torch.relu(x_LND @ mix_LDD) + 2.0, torch.ones(n_contexts), [(row,) for row in range(n_contexts)]
    )


def trained(folder: Path, steps: int, seed: int = 0) -> CrossLayerTranscoder:
    train_transcoder(
        contexts(), replace(TINY, steps=steps), seed, folder / "transcoder", folder / "checkpoints", "some-model"
    )
    return load_dictionary(folder / "transcoder")


def losses(lines: list[str]) -> list[float]:
    return [sum(map(float, re.findall(r"\d+\.\d+", line))) for line in lines]


@pytest.mark.slow("takes 3.6 s")
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


@pytest.mark.slow("a training that must learn: 3 s")
def test_the_transcoder_learns_and_keeps_to_its_number_of_active_features(tmp_path: Path) -> None:
    data = contexts()

    def error(transcoder: CrossLayerTranscoder) -> float:
        return (reconstruct(transcoder, data.x_LND) - data.y_LND).square().sum().item()

    untrained, long = trained(tmp_path / "short", steps=1), trained(tmp_path / "long", steps=600)
    assert error(long) < 0.5 * error(untrained)
    active = (long.encode(data.x_LND) > 0).sum(2).float().mean().item()
    assert active == pytest.approx(TINY.active, rel=0.15)


def test_a_seed_decides_the_transcoder(tmp_path: Path) -> None:
    one, same, other = (
        trained(tmp_path / name, 5, seed).W_enc for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_batches_continue_where_they_were() -> None:
    draws, again = (Draws(contexts(), TINY, 3) for _ in range(2))
    draws.next()
    state = json.loads(json.dumps(draws.state()))
    following = draws.next()
    again.restore(state)
    assert torch.equal(again.next().x_BSD, following.x_BSD)


def test_the_dictionary_in_memory_writes_what_the_package_decodes(tmp_path: Path) -> None:
    transcoder, data = trained(tmp_path, steps=20), contexts()
    name = "W_enc_0.safetensors"
    mine, shipped = (load_file(next(folder.rglob(name))) for folder in (tmp_path, demo_folder()))
    assert {key: tensor.dtype for key, tensor in mine.items()} == {key: tensor.dtype for key, tensor in shipped.items()}
    expected = transcoder.decode(transcoder.encode(data.x_LND))
    torch.testing.assert_close(reconstruct(transcoder, data.x_LND), expected, atol=1e-4, rtol=1e-4)


def test_contexts_are_distinct_and_jittered_ones_stand_beside_them(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tokenizer, TINY_MODEL).eval()
    ids_SP = encode_statements(tokenizer, world.skills()[:6])
    stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    plain = collect(model, ids_SP, stop)
    both = with_jittered(model, ids_SP, stop, 0.5, 2, seed=0)
    n_contexts = len(plain.tokens)
    assert len(set(plain.tokens)) == n_contexts
    assert both.x_LND.shape[1] == 3 * n_contexts
    torch.testing.assert_close(both.x_LND[:, :n_contexts], plain.x_LND)
    moved = (both.x_LND[0, n_contexts:] - plain.x_LND[0].repeat(2, 1)).norm(dim=1)
    length = model.model.embed_tokens.weight.norm(dim=1).median()
    assert moved.min() > 0
    assert moved.mean() == pytest.approx(0.25 * float(length), rel=0.3)


@pytest.mark.slow("a recipe from data to card: 3 s")
def test_the_recipe_writes_everything_and_search_takes_it_up(tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = recipe.train(
        tmp_path / "1-2",
        1,
        2,
        report=lines.append,
        model_recipe=replace(TINY_MODEL, steps=2),
        transcoder_recipe=replace(TINY, steps=20),
        graphs=2,
    )
    names = {file.name for file in (tmp_path / "1-2").iterdir()}
    assert names == {"model", "transcoder", "features", "labels.json", "metrics.json", "README.md"}
    assert json.loads((tmp_path / "1-2" / "metrics.json").read_text(encoding="utf-8")) == metrics
    with pytest.raises(InputError, match="further seeds"):
        recipe.search(tmp_path, [(1, 2)], lines.append)
    with pytest.raises(InputError, match="another seed or recipe"):
        recipe.train(tmp_path / "1-2", 3, 2, report=lines.append, model_recipe=replace(TINY_MODEL, steps=2))
