"""Autoencoders on the command line: -t takes them wherever features are read or changed; a graph explains one of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.models.run import read
from circuit_tracer.transcoders.loading import load_dictionary
from tests.support.autoencoders import saved_autoencoders
from tests.support.command import TEXT, Folders, Run


@pytest.fixture(scope="module")
def saes(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_autoencoders(tmp_path_factory.mktemp("saes"), str(folders.model))


def test_pages_of_their_features(run: Run, folders: Folders, saes: Path, tmp_path: Path) -> None:
    """Strongest activations of a text, and the tokens that the decoder row makes likelier."""
    text, built = tmp_path / "text.txt", tmp_path / "built"
    text.write_text(TEXT, encoding="utf-8")
    done = run("features", "build", "-t", saes, "--data", text, "-o", built, "--separate", "--device", "cpu")
    assert done.code == 0, done.err
    features = FeatureFolder(built)
    assert {layer for layer, _ in features} == {0, 2}
    model = ReplacementModel.from_pretrained(folders.model, saes, device="cpu")
    x = read(model.parts, model.ensure_tokenized(TEXT), [("hook_resid_post", 2)])["hook_resid_post", 2][0, 1:]
    most = model.transcoders.encode_layer(x, 2).amax(0)
    index = int(most.argmax())
    record = features.get((2, index))
    assert record["act_max"] == pytest.approx(float(most[index]), rel=1e-3)
    row = model.transcoders[2].W_dec[index] * model.parts.final_norm.parameters.gain  # type: ignore[index]
    best = [model.tokenizer.decode([token]).strip() for token in (model.unembed_weight @ row).topk(2).indices.tolist()]
    assert [text.strip() for text in record["top_logits"][:2]] == best


def test_features_are_changed_on_a_prompt_and_while_generating(run: Run, saes: Path) -> None:
    changed = run("intervene", "-t", saes, "-p", TEXT, "--set", "2/5=3", "--json")
    assert changed.code == 0, changed.err
    assert changed.json["semantics"].startswith("direct")
    assert any(token["logit_before"] != token["logit_after"] for token in changed.json["tokens"])
    held = run("intervene", "-t", saes, "-p", TEXT, "--set", "2/5=3", "--semantics", "constrained")
    assert held.code == 2
    assert "residual stream" in held.err
    steered = run("steer", "-t", saes, "-p", TEXT, "--set", "2/5@all=30", "--max-new-tokens", 3, "--json")
    assert steered.code == 0, steered.err
    assert steered.json["steered"]["ids"] != steered.json["unsteered"]["ids"]
    none = run("steer", "-t", saes, "-p", TEXT, "--set", "1/5=3")
    assert none.code == 2
    assert "of 3 layers, 0 and 2 have autoencoders" in " ".join(none.err.split())


def test_a_graph_explains_a_feature(run: Run, folders: Folders, saes: Path) -> None:
    outcome = run(
        *("attribute", "-t", folders.transcoder, "-p", TEXT, "--json"),
        "--target",
        f"sae:{saes}:2:-1:5",
        "--target",
        f"sae:{saes}:0:3:2",
    )
    assert outcome.code == 0, outcome.err
    labels = [target["text"] for target in outcome.json["targets"]]
    assert labels == ["sae feature 2/5 at resid_post 2", "sae feature 0/2 at resid_post 0"]
    for named, said in ((f"sae:{saes}:2:5", "is not sae:FOLDER"), (f"sae:{saes}:1:-1:5", "layer 1 has no features")):
        refused = run("attribute", "-t", folders.transcoder, "-p", TEXT, "--target", named, "--json")
        assert refused.code == 2
        assert said in refused.err


def test_the_embedded_model_talks_of_nothing_else_once_a_feature_is_held(run: Run, tmp_path: Path) -> None:
    """A feature at the last layer that writes a token's unembedding row: held up, every generated token is that one."""
    model = ReplacementModel.from_pretrained(MODEL, "neurons", device="cpu")
    token = model.tokenizer(" Texas", add_special_tokens=False).input_ids[0]
    last, row = model.cfg.n_layers - 1, model.unembed_weight[token] * model.parts.final_norm.parameters.gain
    row = row / row.norm()
    place = tmp_path / f"layer_{last}"
    place.mkdir()
    tensors = {"W_enc": row[:, None], "W_dec": row[None], "b_enc": torch.zeros(1), "b_dec": torch.zeros(len(row))}
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, place / "sae_weights.safetensors"
    )
    said = {"architecture": "standard", "d_in": len(row), "d_sae": 1, "apply_b_dec_to_input": False,
            "metadata": {"hook_name": f"blocks.{last}.hook_resid_post"}}  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(said), encoding="utf-8")
    prompt = "Fact: the capital of Ohio is"
    ids = model.ensure_tokenized(prompt)
    x = read(model.parts, ids, [("hook_resid_post", last)])["hook_resid_post", last][0, -1]
    strength = 10 * float(x.norm())
    outcome = run(
        "steer",
        "-t",
        tmp_path,
        "-m",
        MODEL,
        "-p",
        prompt,
        "--set",
        f"{last}/0@all={strength}",
        "--max-new-tokens",
        4,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["steered"]["ids"] == [token] * 4
    assert outcome.json["unsteered"]["ids"] != outcome.json["steered"]["ids"]
    assert load_dictionary(tmp_path)[0].is_autoencoder
