"""Which files make a dictionary, by their names: in a folder, and in a repository of the hub (a server on this machine)."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.transcoders import hub as downloads
from circuit_tracer.transcoders import load_transcoder_from_hub, save_transcoders, save_transcoders_to_cache
from circuit_tracer.transcoders.attention import load_attention
from circuit_tracer.transcoders.layouts import Found, find
from circuit_tracer.transcoders.loading import load_dictionary
from circuit_tracer.transcoders.references import HubReference, resolve
from circuit_tracer.transcoders.selection import Selection, parse_selection, selection_text
from tests.support.autoencoder_layouts import AUTOENCODERS
from tests.support.dictionaries import random_clt, random_set
from tests.support.fake_hub import FakeHub
from tests.support.lorsa_files import CONFIG, WIDTH, tensors, written
from tests.support.published import D, F, L, draw, gemma_scope_1, gemma_scope_2, gemma_scope_2_clt, saelens, save

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
pytestmark = pytest.mark.filterwarnings("ignore:.*nothing says where.*")


@pytest.fixture(autouse=True)
def _seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("CIRCUIT_TRACER_CACHE_DIR", str(tmp_path / "cache"))


def looked_up(names: list[str], selection: Selection) -> Found:
    return find(names, selection, "there", lambda config: True)


def layers(names: list[str], selection: str | None = None) -> dict[int, list[str]] | None:
    return looked_up(names, parse_selection(selection)).layers


# ---- names alone


@pytest.mark.parametrize(
    "pattern",
    [
        "layer_{}.safetensors",
        "layer_{:03}.npz",
        "layers.{}.mlp/sae.safetensors",
        "a/b/c/layers.{}.mlp/sae.safetensors",
        "model.layers.{}.mlp/sae.safetensors",
        "blocks.{}.ln2.hook_normalized/sae_weights.safetensors",
        "h.{}.mlp/sae.safetensors",
        "layer{}_transcoder_8x_k64/sae_weights.safetensors",
        "layer_{}/width_16k/average_l0_76/params.npz",
        "layer_{}_width_16k_l0_small_affine/params.safetensors",
        "clt/width_262k_l0_medium/params_layer_{}.safetensors",
        "Llama3_1-8B-Base-L{}TC-8x/final.safetensors",
        "{}.safetensors",
        "16k/{}/params.npz",
        "resid/block-{}/weights.safetensors",
        "Layer_{}.safetensors",
    ],
)
def test_layers_are_found_by_their_names(pattern):
    names = [pattern.format(layer) for layer in (0, 1, 2, 10)]
    assert layers([*names, "README.md", ".gitattributes"]) == {
        layer: [name] for layer, name in zip((0, 1, 2, 10), names, strict=True)
    }


def test_a_file_that_names_no_layer_stands_alone():
    assert layers(["clt_weights.safetensors", "cfg.json"]) is None
    assert looked_up(["clt_weights.safetensors", "cfg.json"], {}).names == ["clt_weights.safetensors", "cfg.json"]
    with pytest.raises(FileFormatError, match=r"cannot tell which layer a\.safetensors belongs to"):
        layers(["a.safetensors", "b.safetensors"])


def test_shards_of_a_layer_are_joined_and_must_all_be_there():
    names = [f"layer_{layer}/model-0000{shard}-of-00002.safetensors" for layer in (0, 1) for shard in (1, 2)]
    assert layers([*names, "layer_0/model.safetensors.index.json"]) == {0: names[:2], 1: names[2:]}
    with pytest.raises(FileFormatError, match=r"of the 2 shards of layer_1/.* \[2\] are missing"):
        layers(names[:3])


def test_files_beside_come_along_and_statistics_are_no_weights():
    names = [
        f"blocks.{i}.hook/{name}"
        for i in range(2)
        for name in ("sae_weights.safetensors", "sparsity.safetensors", "cfg.json")
    ]
    found = looked_up([*names, "norm_stats.json", "other/notes.json", "README.md"], {})
    assert set(found.names) == {*(name for name in names if "sparsity" not in name), "norm_stats.json"}


GEMMA_2 = [
    f"{folder}/layer_{layer}_width_{width}_l0_{l0}{affine}/params.safetensors"
    for folder in ("transcoder_all", "resid_post_all")
    for layer in range(3)
    for width in ("16k", "262k")
    for l0 in ("small", "big")
    for affine in ("", "_affine")
]


def test_several_dictionaries_are_an_error_that_lists_the_choices():
    with pytest.raises(InputError) as caught:
        layers(GEMMA_2)
    for said in (
        "16 dictionaries",
        "width: 16k, 262k",
        "l0: big, small",
        "affine: no, yes",
        "sub-folders: resid_post_all, transcoder_all",
    ):
        assert said in str(caught.value)
    with pytest.raises(InputError, match="holds nothing with width=65k"):
        layers(GEMMA_2, "width=65k")
    with pytest.raises(InputError, match="there is no facet size"):
        layers(GEMMA_2, "size=16k")


def test_a_selection_says_which_is_meant():
    found = layers(GEMMA_2, "width=16k,l0=small,affine=no,path=transcoder_all")
    assert found == {i: [f"transcoder_all/layer_{i}_width_16k_l0_small/params.safetensors"] for i in range(3)}
    below = [name.removeprefix("transcoder_all/") for name in GEMMA_2 if name.startswith("transcoder_all")]
    assert layers(below, "l0=big,width=262k,affine=yes")[2] == ["layer_2_width_262k_l0_big_affine/params.safetensors"]


def test_of_several_l0_the_closest_of_each_layer_is_taken_and_said():
    sizes = {0: (5, 25, 80), 1: (12, 60), 2: (40,)}
    names = [f"layer_{i}/width_16k/average_l0_{l0}/params.npz" for i, each in sizes.items() for l0 in each]
    for wanted, taken in (("30", (25, 12, 40)), ("smallest", (5, 12, 40)), ("largest", (80, 60, 40))):
        found = looked_up(names, {"l0": wanted})
        assert tuple(found.l0[layer] for layer in range(3)) == taken
        assert found.layers == {i: [f"layer_{i}/width_16k/average_l0_{taken[i]}/params.npz"] for i in range(3)}
    with pytest.raises(InputError, match=r"layer 0 has dictionaries of L0 5, 25, 80\. Say which: l0=NUMBER"):
        layers(names)
    with pytest.raises(InputError, match="l0=tiny is none of them"):
        layers(names, "l0=tiny")


def test_weights_that_no_layer_takes_are_refused_wherever_they_are_listed():
    native = [f"layer_{layer}.safetensors" for layer in range(2)]
    for extra in ("thresholds.safetensors", "skip.pt", "extra.bin"):
        with pytest.raises(FileFormatError, match=f"no layer of the transcoders takes {extra}"):
            layers([*native, extra])
    assert layers([*native, "features/layer_0.bin", "sparsity.safetensors"]) == {0: native[:1], 1: native[1:]}


def test_parts_of_ranks_are_refused():
    with pytest.raises(FileFormatError, match="as its ranks trained it"):
        layers(["rank0_weights.safetensors", "rank1_weights.safetensors", "cfg.json"])


# ---- references


def test_a_reference_may_end_with_a_selection(tmp_path):
    reference, selection = resolve("org/repo/sub@rev:l0=small,width=16k")
    assert reference == HubReference("org/repo", "sub", "rev", "width=16k,l0=small")
    assert selection_text(selection) == "width=16k,l0=small"
    assert str(reference) == "org/repo/sub@rev:width=16k,l0=small"
    assert reference.scan == "org/repo//sub@rev:width=16k,l0=small"
    assert resolve("org/repo", {"k": "64"})[0].selection == "k=64"
    (tmp_path / "a:b=c").mkdir()
    assert resolve(tmp_path / "a:b=c") == (tmp_path / "a:b=c", {})
    assert resolve(f"{tmp_path}:width=16k") == (tmp_path, {"width": "16k"})
    for text in ("org/repo:width", "org/repo:width=", "org/repo:width=1,width=2"):
        with pytest.raises(InputError):
            resolve(text)
    with pytest.raises(InputError, match="is given too; choose"):
        resolve("org/repo:k=64", "k=128")


# ---- folders


def test_a_selection_chooses_among_folders(tmp_path):
    x = torch.randn(L, 5, D)
    expected = {}
    for name in ("layer_{}_width_16k_l0_small", "layer_{}_width_16k_l0_small_affine", "layer_{}_width_262k_l0_small"):
        expected[name] = gemma_scope_2(tmp_path / "transcoder_all", name)(x)
    with pytest.raises(InputError, match=r"width: 16k, 262k\n.*affine: no, yes"):
        load_transcoder_from_hub(tmp_path)
    found, _ = load_transcoder_from_hub(tmp_path, select={"width": "16k", "affine": "yes"})
    torch.testing.assert_close(found(x), expected["layer_{}_width_16k_l0_small_affine"])
    found, _ = load_transcoder_from_hub(f"{tmp_path}/transcoder_all:width=262k")
    torch.testing.assert_close(found(x), expected["layer_{}_width_262k_l0_small"])


def test_published_folders_of_some_layers_are_loaded(tmp_path):
    reference = gemma_scope_2(tmp_path, layers=range(1, L))
    found, _ = load_transcoder_from_hub(tmp_path)
    assert found.layers == (1, 2)
    x = torch.randn(L, 5, D)
    torch.testing.assert_close(found(x)[1:], reference(x[1:]))


def test_links_of_a_hub_cache_are_followed(tmp_path):
    reference = saelens(tmp_path / "blobs")
    snapshot = tmp_path / "models--org--repo" / "snapshots" / ("0" * 39 + "a")
    for path in sorted((tmp_path / "blobs").rglob("*")):
        if path.is_file():
            link = snapshot / path.relative_to(tmp_path / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    x = torch.randn(L, 5, D)
    for folder in (snapshot, tmp_path / "models--org--repo"):
        torch.testing.assert_close(load_transcoder_from_hub(folder)[0](x), reference(x))


def test_shards_of_a_cross_layer_transcoder_are_read(tmp_path):
    """One layer's tensors in two files, with the index that names them."""
    original = gemma_scope_2_clt(tmp_path / "whole")
    folder = tmp_path / "whole" / "clt" / "width_262k_l0_big_affine"
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        names = sorted(tensors)
        for number, part in enumerate((names[:2], names[2:]), start=1):
            save_file({name: tensors[name] for name in part}, folder / f"{path.stem}-0000{number}-of-00002.safetensors")
        (folder / f"{path.stem}.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
        path.unlink()
    x = torch.randn(L, 5, D)
    torch.testing.assert_close(load_transcoder_from_hub(tmp_path / "whole", **HOOKS)[0](x), original(x))


def test_a_single_file_says_its_layer_beside_it_or_is_refused(tmp_path):
    saelens(tmp_path / "all")
    shutil.copytree(tmp_path / "all" / "blocks.1.ln2.hook_normalized", tmp_path / "mine")
    assert load_transcoder_from_hub(tmp_path / "mine")[0].layers == (1,)
    save(
        tmp_path / "nameless" / "weights.safetensors",
        {"W_enc": draw(F, D), "W_dec": draw(F, D), "b_enc": draw(F), "b_dec": draw(D)},
    )
    with pytest.raises(FileFormatError, match="neither its name nor what lies beside it says which layer"):
        load_transcoder_from_hub(tmp_path / "nameless", **HOOKS)


def test_a_clt_of_one_layer_is_loaded(tmp_path):
    original = random_clt(n_layers=1)
    save_transcoders(original, tmp_path)
    x = torch.randn(1, 4, 5)
    torch.testing.assert_close(load_transcoder_from_hub(tmp_path)[0](x), original(x))


@pytest.mark.parametrize("listed", [(0, 1, 2), (1, 2)], ids=["all", "some"])
def test_a_list_says_its_layers(tmp_path, listed):
    original = random_set()
    original.to_safetensors(tmp_path)
    config = {"model_kind": "transcoder_set", "transcoders": [f"layer_{i}.safetensors" for i in listed], **HOOKS}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_transcoder_from_hub(tmp_path)[0].layers == listed
    config["transcoders"].reverse()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FileFormatError, match="not in the order of its layers"):
        load_transcoder_from_hub(tmp_path)


def test_an_unreadable_folder_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileFormatError, match=r"no \.safetensors or \.npz .*; found notes\.txt"):
        load_transcoder_from_hub(tmp_path)


# ---- what is none of a transcoder


REFUSED = {
    "lorsa": ({"W_Q": (2, 3)}, {"sae_type": "lorsa"}, "Lorsa, a dictionary of attention outputs"),
    "crosscoder": ({"W_E": (2, D, F), "W_D": (2, F, D), "b_E": (F,)}, {"sae_type": "crosscoder"}, "a crosscoder"),
    "crosscoder of two models": (
        {"encoder.weight": (2, D, F), "encoder.bias": (F,), "decoder.weight": (2, F, D), "decoder.bias": (2, D)},
        {"activation_dim": D, "dict_size": F, "num_layers": 2},
        "a crosscoder",
    ),
    "molt": ({"U_matrices.0": (2, 3), "V_matrices.0": (2, 3)}, None, "a mixture of linear transforms"),
    "gated": (
        {"W_E": (D, F), "W_E_glu": (D, F), "b_E": (F,), "b_E_glu": (F,), "W_D": (F, D)},
        {"sae_type": "sae"},
        "a gated encoder",
    ),
    "bytedance": (
        {"W_enc_0": (F, D), "W_dec_0": (F, 1, D), "W_dec_norm_0": (F,)},
        None,
        "ByteDance's cross-layer transcoder",
    ),
    "adapters": ({"model.layers.0.mlp.transcoder_enc.weight": (F, D)}, None, "a whole language model with adapters"),
    "model": ({"model.layers.0.self_attn.q_proj.weight": (D, D)}, None, "a language model; give it as the model"),
}


@pytest.mark.parametrize(("shapes", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_known_files_that_are_no_transcoders_are_refused_as_what_they_are(tmp_path, shapes, config, message):
    save(
        tmp_path / "layer_0" / "sae_weights.safetensors",
        {n: draw(*s) for n, s in shapes.items()},
        config,
        "config.json",
    )
    with pytest.raises(FileFormatError, match=message):
        load_transcoder_from_hub(tmp_path, **HOOKS)


# ---- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    import huggingface_hub.constants as constants

    with FakeHub().running() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def publish(hub: FakeHub, folder: Path, name: str = "org/repo") -> None:
    hub.repositories[name] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } | {"README.md": b"# a card", ".gitattributes": b""}


def test_lorsa_of_a_repository(hub, tmp_path):
    local = load_attention(written(tmp_path / "made" / "lorsa", tensors(), CONFIG))
    publish(hub, tmp_path / "made")
    found = load_attention("org/repo/lorsa")
    assert found.layers == (1,)
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(found.encode_layer(x, 1), local.encode_layer(x, 1))


def test_a_repository_without_config_is_listed_and_only_what_is_meant_is_fetched(hub, tmp_path):
    x = torch.randn(L, 5, D)
    for name in ("layer_{}_width_16k_l0_small", "layer_{}_width_262k_l0_small"):
        expected = gemma_scope_2(tmp_path / "made" / "transcoder_all", name)(x)
    publish(hub, tmp_path / "made")
    with pytest.raises(InputError, match=r"org/repo/transcoder_all holds 2 dictionaries:\n  width: 16k, 262k"):
        load_transcoder_from_hub("org/repo/transcoder_all")
    loaded, config = load_transcoder_from_hub("org/repo/transcoder_all:width=262k")
    torch.testing.assert_close(loaded(x), expected)
    assert loaded.scan == config["scan"] == "org/repo//transcoder_all:width=262k"
    assert (loaded.feature_input_hook, loaded.feature_output_hook) == ("mlp.hook_in", "hook_mlp_out")
    fetched = {name for name in hub.downloads if name != "config.yaml"}
    assert len(fetched) == 2 * L
    assert all("width_262k" in name for name in fetched)


def test_one_layer_of_published_autoencoders_is_fetched_and_nothing_else(hub, tmp_path):
    layout, place = AUTOENCODERS["gemma-scope-1-att"]
    x, expected = torch.randn(L, 5, D), layout.write(tmp_path / "made")
    publish(hub, tmp_path / "made" / "gemma-scope-2b-pt-att", "google/gemma-scope-2b-pt-att")
    loaded, config = load_dictionary("google/gemma-scope-2b-pt-att:layer=1,width=16k")
    assert (loaded.layers, config["feature_input_hook"]) == ((1,), place)
    torch.testing.assert_close(loaded(x[:2])[1], expected(x)[1])
    assert [name for name in hub.downloads if name.endswith(".npz")] == ["layer_1/width_16k/params.npz"]
    with pytest.raises(FileFormatError, match=r"google/gemma-scope-2b-pt-att.*is a sparse autoencoder at attn\.hook_z"):
        load_transcoder_from_hub("google/gemma-scope-2b-pt-att:layer=1")


def test_gemma_scope_1_is_fetched_by_the_l0_that_is_wanted(hub, tmp_path):
    reference = gemma_scope_1(tmp_path / "made")
    for layer in range(L):
        other = tmp_path / "made" / f"layer_{layer}" / "width_16k" / "average_l0_5"
        other.mkdir()
        np.savez(other / "params.npz", threshold=np.zeros(F))
    publish(hub, tmp_path / "made")
    loaded, config = load_transcoder_from_hub("org/repo", select="l0=75")
    assert config["l0"] == {0: 70, 1: 79, 2: 88}
    x = torch.randn(L, 5, D)
    torch.testing.assert_close(loaded(x), reference(x))
    assert not any("average_l0_5" in name for name in hub.downloads)


def test_what_was_fetched_is_found_again_without_the_hub(hub, tmp_path, monkeypatch):
    reference = saelens(tmp_path / "made")
    publish(hub, tmp_path / "made")
    x = torch.randn(L, 5, D)
    load_transcoder_from_hub("org/repo")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.testing.assert_close(load_transcoder_from_hub("org/repo")[0](x), reference(x))
    with pytest.raises(InputError, match=r"could not get .* of org/other .*local folder"):
        load_transcoder_from_hub("org/other")


def test_a_selection_has_a_cache_entry_of_its_own(hub, tmp_path):
    x = torch.randn(L, 5, D)
    expected = {w: gemma_scope_2(tmp_path / "made", f"layer_{{}}_width_{w}_l0_small")(x) for w in ("16k", "262k")}
    publish(hub, tmp_path / "made")
    folder = save_transcoders_to_cache("org/repo:width=16k", delete_hf_cache=False)
    assert folder.name == "repo+width=16k"
    hub.downloads.clear()
    torch.testing.assert_close(load_transcoder_from_hub("org/repo:width=16k")[0](x), expected["16k"])
    assert not hub.downloads
    torch.testing.assert_close(load_transcoder_from_hub("org/repo:width=262k")[0](x), expected["262k"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", "no such repository"),
        ("org/repo/none", "no such file: check the sub-folder"),
        ("org/repo", "holds no transcoder files"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub, tmp_path, name, message):
    hub.repositories["org/repo"] = {"README.md": b"x"}
    with pytest.raises((InputError, FileFormatError), match=message):
        load_transcoder_from_hub(name)
    assert issubclass(downloads.NoSuchFile, InputError)


def test_weights_beside_those_of_a_repository_are_not_passed_over(hub, tmp_path):
    saelens(tmp_path / "made")
    save_file({"threshold": torch.zeros(F)}, tmp_path / "made" / "thresholds.safetensors")
    publish(hub, tmp_path / "made")
    with warnings.catch_warnings(), pytest.raises(FileFormatError, match=r"thresholds\.safetensors"):
        load_transcoder_from_hub("org/repo")
