"""The shipped files are what their metrics say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import PROMPT, TRANSCODER, demo_folder, load_labels, world
from circuit_tracer.demo.card import model_card
from circuit_tracer.demo.dictionary import load_dictionary
from circuit_tracer.demo.evaluate import (
    SHOWN_SWAPS,
    accuracy,
    agreement,
    never_active,
    reconstruction,
    shown,
    swap_test,
)
from circuit_tracer.demo.labels import is_mixed
from circuit_tracer.demo.mixing import carried
from circuit_tracer.demo.probes import entity_features
from circuit_tracer.demo.recipe import MODEL_SEED, TRANSCODER_SEED, load_model
from circuit_tracer.demo.show import load_demo
from circuit_tracer.demo.train_model import ModelRecipe
from circuit_tracer.demo.train_transcoder import TranscoderRecipe
from circuit_tracer.graph.influence import compute_node_influence
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.transcoders import CrossLayerTranscoder

Demo = tuple[LlamaForCausalLM, PreTrainedTokenizerFast, CrossLayerTranscoder]


@pytest.fixture(scope="module")
def demo() -> Demo:
    model, tokenizer = load_model(demo_folder() / "model")
    return model, tokenizer, load_dictionary(TRANSCODER)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return json.loads((demo_folder() / "metrics.json").read_text(encoding="utf-8"))


def test_all_files_together_are_small() -> None:
    assert sum(file.stat().st_size for file in demo_folder().rglob("*") if file.is_file()) <= 15e6


def test_the_shipped_seeds_and_recipe_are_those_of_the_code(metrics: dict[str, Any]) -> None:
    from dataclasses import asdict

    assert metrics["seeds"] == {"model": MODEL_SEED, "transcoder": TRANSCODER_SEED}
    assert metrics["recipe"] == {"model": asdict(ModelRecipe()), "transcoder": asdict(TranscoderRecipe())}


def test_the_card_says_what_the_metrics_say(metrics: dict[str, Any]) -> None:
    assert (demo_folder() / "README.md").read_text(encoding="utf-8") == model_card(metrics)


def test_the_model_knows_what_it_was_and_was_not_shown(demo: Demo, metrics: dict[str, Any]) -> None:
    model, tokenizer, _ = demo
    assert accuracy(model, tokenizer, world.held_out()) == pytest.approx(
        metrics["accuracy"]["two_hop_held_out"], abs=0.02
    )
    assert accuracy(model, tokenizer, world.skills()) == pytest.approx(metrics["accuracy"]["skills"], abs=0.02)
    assert metrics["accuracy"]["two_hop_held_out"] >= 0.98


def test_the_transcoder_reconstructs_as_published(demo: Demo, metrics: dict[str, Any]) -> None:
    found = reconstruction(*demo, world.held_out())
    published = metrics["reconstruction"]["held_out_statements"]
    for name in ("nmse_by_layer", "l0_by_layer"):
        assert found[name] == pytest.approx(published[name], rel=0.02, abs=1e-4)
    assert max(found["nmse_by_layer"]) < 0.05
    kept = metrics["answer_kept_with_all_mlps_replaced"]["two_hop_held_out"]
    assert agreement(*demo, world.held_out()) == pytest.approx(kept, abs=0.03)


def test_the_published_numbers_meet_their_aims(metrics: dict[str, Any]) -> None:
    n_features = metrics["recipe"]["transcoder"]["n_features"]
    never = metrics["features_never_active_by_layer"]
    assert sum(never) < 0.05 * n_features * len(never)
    kept = dict(metrics["answer_kept_with_all_mlps_replaced"])
    assert kept.pop("two_hop_reserved_cities") >= 0.9  # of cities that the transcoder never saw
    assert min(kept.values()) >= 0.98
    assert metrics["entity_features"]["prompts_with_one_active"]["two_hop"] >= 0.9
    assert all(one["passes"] for one in metrics["shown"])


def test_the_sparse_trainer_wakes_more_features_at_equal_l0_in_training(metrics: dict[str, Any]) -> None:
    """From planted weights dense training reconstructs as well; what AuxK adds is that fewer features never fire."""
    ours, *others = metrics["trainers"]["rows"].values()
    for other in others:
        assert ours["never_active"] < other["never_active"]
        assert ours["nmse"] == pytest.approx(other["nmse"], rel=0.05)


def test_features_never_active_are_as_many_as_published(demo: Demo, metrics: dict[str, Any]) -> None:
    assert never_active(*demo) == pytest.approx(metrics["features_never_active_by_layer"], abs=3)


def test_the_shown_prompts_carry_the_feature_that_the_story_needs(demo: Demo) -> None:
    features = entity_features(*demo)
    labels = load_labels()
    for city, other in SHOWN_SWAPS:
        found = shown(*demo, features, city, other)
        assert found["passes"], found
        names = [labels[tuple(map(int, key.split("/")))] for key in found["active_features_of_entity"]]  # type: ignore[index]
        assert any(found["entity"] in name for name in names)


def test_what_mixed_features_carry_is_what_a_dense_statement_of_it_says() -> None:
    labels = load_labels()
    graph = attribute(PROMPT, load_demo())
    kept = prune_graph(graph)[0]
    influence_N = compute_node_influence(graph.adjacency_matrix.double(), graph.target_weights.double())
    mixed = every = 0.0
    for row, (layer, _, feature) in enumerate(graph.active_features[graph.selected_features].tolist()):
        if kept[row]:
            every += float(influence_N[row])
            mixed += float(influence_N[row]) * labels[layer, feature].startswith("mixed")
    found = carried(graph, labels)
    assert (found.mixed, found.all) == pytest.approx((mixed, every))
    assert carried(graph, {}).mixed == pytest.approx(every)


def test_mixed_features_carry_little(metrics: dict[str, Any]) -> None:
    kinds = metrics["kinds"]
    assert max(share["mixed"] for share in kinds["influence"].values()) < 0.1
    for layer, mixed in enumerate(kinds["mixed_by_layer"]):
        assert sum(is_mixed(label) for (at, _), label in load_labels().items() if at == layer) == mixed


def test_swapping_an_entitys_features_flips_answers_on_reserved_cities(demo: Demo, metrics: dict[str, Any]) -> None:
    sample = world.reserved()[::4]
    flipped = swap_test(*demo, entity_features(*demo), sample, 1)["all"]
    assert flipped == pytest.approx(metrics["swap_reserved_cities"]["1"]["all"], abs=0.1)


def test_the_demo_prompt_is_one_that_neither_was_trained_on(demo: Demo) -> None:
    model, tokenizer, _ = demo
    assert PROMPT in {one.prompt for one in world.held_out()}
    ids_BP = torch.tensor([tokenizer(PROMPT).input_ids])
    assert tokenizer.decode(model(input_ids=ids_BP).logits[0, -1].argmax()) == "Austin"


def test_every_active_feature_has_a_label(demo: Demo) -> None:
    labels = load_labels()
    assert labels
    assert all(label for label in labels.values())
