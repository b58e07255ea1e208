"""Lorsa: its formula, written out feature by feature, and the files of OpenMOSS."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.fingerprint import transcoder_fingerprint
from circuit_tracer.transcoders import SingleLayerTranscoder, TopK, save_transcoders
from circuit_tracer.transcoders.attention import load_attention
from circuit_tracer.transcoders.lorsa import Lorsa, QueriesKeys, Rotary
from tests.support.attention_cases import autoencoders
from tests.support.lorsa_files import CONFIG, FEATURES, HEAD, HEADS, IN, OUT, WIDTH, P, draw, tensors, written
from tests.support.tiny import tiny_transcoder
from tests.support.tracing_cases import Case, build


def naive(w: dict[str, Tensor], x: Tensor, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Activations (P, F) and output (P, D) as the library computes them, number by number."""
    pre = torch.zeros(len(x), FEATURES, dtype=x.dtype)
    for i in range(FEATURES):
        h = i // (FEATURES // HEADS)
        query, key = [], []
        for p in range(len(x)):
            for made, side in ((query, "Q"), (key, "K")):
                v = x[p] @ w[f"W_{side}"][h] + w[f"b_{side}"][h]
                v = v / (v.pow(2).mean() + config["eps"]).sqrt() * w[f"ln_{side.lower()}.w"][h]
                turned = v.clone()
                half = config["rotary_dim"] // 2
                for j in range(half):
                    angle = torch.tensor(p / config["rotary_base"] ** (j / half), dtype=x.dtype)
                    a, b = (2 * j, 2 * j + 1) if config["rotary_adjacent_pairs"] else (j, j + half)
                    turned[a] = v[a] * angle.cos() - v[b] * angle.sin()
                    turned[b] = v[b] * angle.cos() + v[a] * angle.sin()
                made.append(turned)
        for p in range(len(x)):
            weight = torch.softmax(torch.stack([query[p] @ key[q] for q in range(p + 1)]) / sqrt(HEAD), 0)
            pre[p, i] = sum(weight[q] * (x[q] @ w["W_V"][i] + w["b_V"][i]) for q in range(p + 1))
    norm = w["W_O"].norm(dim=1)
    scaled = (pre * norm).relu()
    kept = torch.zeros_like(scaled).scatter(1, scaled.topk(2, dim=1).indices, 1.0) * scaled
    activations = kept / norm
    return activations, activations @ w["W_O"] + w["b_D"]


@pytest.mark.parametrize("adjacent", [False, True], ids=["halves", "neighbours"])
def test_files_are_read_as_the_library_computes(adjacent: bool, tmp_path: Path) -> None:
    config = {**CONFIG, "rotary_adjacent_pairs": adjacent}
    found = load_attention(written(tmp_path, tensors(), config), dtype=None)
    assert isinstance(found, Lorsa)
    assert (found.layers, found.n_features(1)) == ((1,), FEATURES)
    assert (found.feature_input_hook, found.feature_output_hook) == ("ln1.hook_normalized", "hook_attn_out")
    x = draw(P, WIDTH)
    activations, output = naive(tensors(), x, config)
    norm = tensors()["W_O"].norm(dim=1)
    dense = found.encode_layer(x, 1)
    torch.testing.assert_close(dense, activations * norm)
    position, index, value = found.encode_positions(1, x)
    torch.testing.assert_close(torch.zeros_like(dense).index_put((position, index), value), dense)
    rows = found.decoder_rows(1, torch.arange(FEATURES), target_layer=1)
    torch.testing.assert_close(dense @ rows + found.decoder_bias(1), output)


def test_norms_of_a_data_set_are_folded(tmp_path: Path) -> None:
    """Weights for inputs and outputs scaled to sqrt(D) say the same of inputs and outputs as they are."""
    into, out, weights = 3.0, 0.25, tensors()
    stored = {**weights, "W_Q": weights["W_Q"] / into, "W_K": weights["W_K"] / into, "W_V": weights["W_V"] / into}
    stored |= {"W_O": weights["W_O"] * out, "b_D": weights["b_D"] * out}
    for hook, factor in ((IN, into), (OUT, out)):
        stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor([sqrt(WIDTH) / factor], dtype=torch.float64)
    config = {**CONFIG, "norm_activation": "dataset-wise"}
    found = load_attention(written(tmp_path, stored, config), dtype=None)
    x = draw(P, WIDTH)
    made = found.encode_layer(x, 1) @ found.decoder_rows(
        1, torch.arange(FEATURES), target_layer=1
    ) + found.decoder_bias(1)
    torch.testing.assert_close(made, naive(weights, x, CONFIG)[1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another place": ({"hook_point_in": "blocks.1.hook_resid_pre"}, "Lorsa reads blocks.N.ln1.hook_normalized"),
    "two layers": ({"hook_point_out": "blocks.2.hook_attn_out"}, "does both there"),
    "rotary embedding of Llama 3.1": ({"use_NTK_by_parts_rope": True}, "use_NTK_by_parts_rope"),
    "another activation": ({"act_fn": "batchtopk"}, "act_fn 'batchtopk'"),
    "norms of tokens": ({"norm_activation": "token-wise"}, "norm_activation"),
    "other sizes": ({"n_qk_heads": 3}, "n_qk_heads = 3"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=said):
        load_attention(written(tmp_path, tensors(), {**CONFIG, **change}))


def test_features_divide_among_heads() -> None:
    one = SingleLayerTranscoder(WIDTH, 5, TopK(2), 0)
    shapes = {"W_Q": (2, 8, 6), "W_K": (2, 8, 6), "b_Q": (2, 6), "b_K": (2, 6)}
    own = QueriesKeys({name: draw(*shape) for name, shape in shapes.items()}, 1)
    with pytest.raises(InputError, match="5 features do not divide among 2 QK heads"):
        Lorsa({0: one}, {0: own})


def test_rotary_embedding_knows_distances_only() -> None:
    rotary, x = Rotary(4, 100.0), draw(1, 1, HEAD)
    turned = rotary(x.expand(1, P, HEAD).contiguous())[0]
    torch.testing.assert_close(turned[1] @ turned[3], turned[2] @ turned[4])


@pytest.mark.parametrize("place", ["attn.hook_z", "hook_attn_out"])
def test_autoencoders_of_attention_come_back_from_files(place: str, tmp_path: Path) -> None:
    original = autoencoders(build(Case("gemma2")).parts, place, (0, 2))
    save_transcoders(original, tmp_path)
    found = load_attention(tmp_path, dtype=None)
    assert (found.layers, found.feature_input_hook, found.feature_output_hook) == ((0, 2), place, place)
    for layer in found.layers:
        torch.testing.assert_close(found[layer].W_enc, original[layer].W_enc)


def test_autoencoders_of_another_place_are_no_dictionary_of_attention(tmp_path: Path) -> None:
    save_transcoders(tiny_transcoder("plt", input_hook="hook_resid_post", output_hook="hook_resid_post"), tmp_path)
    with pytest.raises(FileFormatError, match=r"stand at hook_resid_post; those of attention stand at attn\.hook_z or"):
        load_attention(tmp_path)


def test_patterns_tell_two_apart_and_are_not_written_away(tmp_path: Path) -> None:
    found, other = (load_attention(written(tmp_path / name, tensors(), CONFIG)) for name in ("one", "other"))
    assert transcoder_fingerprint(found) == transcoder_fingerprint(other)
    queries = other.queries_keys(other.layers[0])
    queries.W_Q = 1.5 * queries.W_Q
    assert transcoder_fingerprint(found) != transcoder_fingerprint(other)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").write_text("kept")
    with pytest.raises(InputError, match="no place for the patterns"):
        save_transcoders(found, tmp_path / "there")
    assert (tmp_path / "there" / "config.yaml").read_text() == "kept"
