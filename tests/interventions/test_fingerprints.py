"""A graph knows the weights that it was made with; one made with others is refused, whatever it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute, load_transcoder_from_hub
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.fingerprint import fingerprints, model_fingerprint, transcoder_fingerprint
from circuit_tracer.interventions import apply_edits, set_to, validate
from circuit_tracer.transcoders import save_transcoders
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])


def replacement(architecture: str = "llama", **transcoder: Any) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(**transcoder), None, architecture)


@pytest.mark.few
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_weights_have_the_same_fingerprint(architecture: str) -> None:
    one, same = (replacement(architecture) for _ in range(2))
    assert model_fingerprint(one.parts) == model_fingerprint(same.parts)
    other = ReplacementModel.from_model(tiny_model(architecture, seed=3), tiny_transcoder(), None, architecture)
    assert model_fingerprint(one.parts) != model_fingerprint(other.parts)


def test_any_change_of_a_dictionary_shows() -> None:
    whole = {"kind": "clt", "activation": "jump_relu", "skip": True}
    prints = {transcoder_fingerprint(tiny_transcoder(**{**whole, **change})) for change in (
        {}, {"kind": "plt"}, {"seed": 1}, {"skip": False}, {"activation": "relu"}, {"activation": "topk"},
        {"n_features": 21}, {"input_hook": "mlp.hook_in"}, {"output_hook": "mlp.hook_out"},
    )}  # fmt: skip
    assert len(prints) == 9
    for name in ("W_enc", "b_enc", "b_dec", "W_skip"):
        changed = tiny_transcoder(**whole)
        tensor = getattr(changed, name).clone()
        tensor[1, 0] += 1
        setattr(changed, name, tensor)
        assert transcoder_fingerprint(changed) not in prints, name
    for layer, slot in ((0, 0), (0, 1), (0, 2), (1, 1), (2, 0)):
        changed = tiny_transcoder(**whole)
        changed.W_dec = [each.clone() for each in changed.W_dec]
        changed.W_dec[layer][:, slot] += 1
        assert transcoder_fingerprint(changed) not in prints, (layer, slot)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_lazy_weights_have_the_fingerprint_of_loaded_ones(kind: str, tmp_path: Path) -> None:
    saved = tiny_transcoder(kind, torch.float32)
    save_transcoders(saved, tmp_path, "some/model")
    prints = {transcoder_fingerprint(saved)}
    for lazy in (True, False):
        loaded, _ = load_transcoder_from_hub(str(tmp_path), dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy)
        prints.add(transcoder_fingerprint(loaded))
    assert len(prints) == 1


def test_a_graph_of_other_weights_is_refused_even_where_activations_agree(tmp_path: Path) -> None:
    model = replacement()
    graph = Graph.load(attribute(IDS, model).save(tmp_path / "graph.safetensors"))
    assert graph.provenance["fingerprint"] == fingerprints(model.parts, model.transcoders)
    apply_edits(model, graph, set_to((0, 3), 1.0))
    tuned = tiny_model("llama")
    tuned.lm_head.weight.data[0] += 1e-3  # no feature sees it
    decoded = tiny_transcoder()
    decoded.W_dec = [2 * each for each in decoded.W_dec]
    for language_model, transcoder, expected in (
        (tuned, tiny_transcoder(), "another model"),
        (tiny_model("llama"), decoded, "other transcoders"),
    ):
        wrong = ReplacementModel.from_model(language_model, transcoder, None, "llama")
        with pytest.raises(CompatibilityError, match=f"made with {expected}: fingerprint"):
            apply_edits(wrong, graph, set_to((0, 3), 1.0))
        with pytest.raises(CompatibilityError, match=f"made with {expected}: fingerprint"):
            validate(graph, wrong)


def test_in_another_number_format_activations_decide() -> None:
    graph = attribute(IDS, replacement())
    single = ReplacementModel.from_model(
        tiny_model("llama", torch.float32), tiny_transcoder(dtype=torch.float32), None, "llama"
    )
    apply_edits(single, graph, set_to((0, 3), 1.0))
    other = ReplacementModel.from_model(
        tiny_model("llama", torch.float32), tiny_transcoder(dtype=torch.float32, seed=5), None, "llama"
    )
    with pytest.raises(CompatibilityError, match="other activations"):
        apply_edits(other, graph, set_to((0, 3), 1.0))


@pytest.mark.parametrize("there", [None, {"model": "0", "model_dtype": "float64"}, {"version": 1, "transcoder": "0"}])
def test_without_a_fingerprint_of_this_recipe_activations_decide(there: Any) -> None:
    model = replacement()
    graph = attribute(IDS, model)
    graph.provenance["fingerprint"] = there
    apply_edits(model, graph, set_to((0, 3), 1.0))
    with pytest.raises(CompatibilityError, match="other activations"):
        apply_edits(replacement(seed=5), graph, set_to((0, 3), 1.0))
    with pytest.raises(CompatibilityError, match="features 0 to 9"):
        apply_edits(replacement(n_features=10), graph, set_to((0, 3), 1.0))


@torch.no_grad()
def test_digests_are_remembered_until_a_weight_is_written_or_exchanged() -> None:
    model, transcoders = replacement().parts, tiny_transcoder()
    before = model_fingerprint(model), transcoder_fingerprint(transcoders)
    assert (model_fingerprint(model), transcoder_fingerprint(transcoders)) == before
    weight = next(model.model.parameters())
    weight.mul_(2)
    assert (written := model_fingerprint(model)) != before[0]
    weight.data = weight.data / 2
    assert model_fingerprint(model) == before[0] != written
    weight.data[0] += 1e-3  # torch does not count this
    assert model_fingerprint(model) != before[0]
    transcoders.b_dec = transcoders.b_dec + 1
    assert transcoder_fingerprint(transcoders) != before[1]
