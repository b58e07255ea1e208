"""References, configs, the hub (a stand-in: a folder) and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.transcoders import (
    TopK,
    empty_cache,
    get_cache_dir,
    get_cached_path,
    hub,
    is_cached,
    load_transcoder_from_hub,
    load_transcoders,
    load_transcoders_from_cache,
    save_transcoders,
    save_transcoders_to_cache,
)
from circuit_tracer.transcoders.references import HubReference, parse_hub_uri, parse_reference
from tests.support.dictionaries import random_clt, random_set, uniform

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUIT_TRACER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays the hub: `<folder>/<org>/<repo>/<path>`."""
    root = tmp_path / "hub"
    root.mkdir()

    def download_file(reference: HubReference, name: str | None = None) -> Path:
        path = root / reference.repo_id / (reference.path or "") / (name or "")
        if not path.is_file():
            raise hub.NoSuchFile(f"could not get {path.name} of {reference.repo_id}")
        return path

    def list_files(reference: HubReference) -> list[str]:
        folder = root / reference.repo_id / (reference.path or "")
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    monkeypatch.setattr(hub, "download_file", download_file)

    def optional_file(reference: HubReference, name: str) -> Path | None:
        return download_file(reference, name) if name in list_files(reference) else None

    monkeypatch.setattr(hub, "optional_file", optional_file)
    monkeypatch.setattr(hub, "list_files", list_files)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", HubReference("org/repo", None, None)),
        ("org/repo@main", HubReference("org/repo", None, "main")),
        ("org/repo/sub/dir@refs/pr/3", HubReference("org/repo", "sub/dir", "refs/pr/3")),
        ("hf://org/repo/a/b.npz?revision=abc", HubReference("org/repo", "a/b.npz", "abc")),
        ("gemma", HubReference("mwhanna/gemma-scope-transcoders", None, None)),
        ("llama", HubReference("mntss/transcoder-Llama-3.2-1B", None, None)),
    ],
)
def test_references(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["nothing", "", "a//b", "org/../etc", "org/repo@../x", "hf://org", "../org/repo", "/no/such", "a" * 5000, "a\0b"],
)
def test_bad_references_are_errors(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such folder|neither an existing folder nor a hub name|not a hub URI"):
        parse_reference(text)


def test_a_file_is_not_a_reference(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file; give the folder"):
        parse_reference(tmp_path / "x")
    with pytest.raises(InputError, match="not a hub URI"):
        parse_hub_uri("https://org/repo/x")


def test_scan_names_are_circuit_tracers():
    assert parse_reference("org/repo/sub@rev").scan == "org/repo//sub@rev"
    assert parse_reference("org/repo").scan == "org/repo"


def test_offline_is_an_error_with_a_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"could not get config\.yaml of org/repo .*local folder"):
        load_transcoder_from_hub("org/repo")


def test_a_hub_repository_with_native_files(fake_hub):
    original = random_clt("jump_relu", skip=True)
    save_transcoders(original, fake_hub / "org" / "repo" / "sub", model_name="m")
    loaded, config = load_transcoder_from_hub("org/repo/sub@rev1")
    assert (config["scan"], config["repo_id"], config["model_name"]) == ("org/repo//sub@rev1", "org/repo", "m")
    assert loaded.scan == "org/repo//sub@rev1"
    x = uniform(3, 4, 5)
    torch.testing.assert_close(loaded(x), original(x))
    torch.testing.assert_close(load_transcoders(config)(x), original(x))


def publish_list(root: Path, activation: str = "jump_relu", extra: dict | None = None):
    """A repository whose config lists files of another one."""
    original = random_set(activation)
    folder = root / "other" / "weights"
    original.to_safetensors(folder)
    uris = [f"hf://other/weights/layer_{layer}.safetensors?revision=main" for layer in range(3)]
    config = {"model_kind": "transcoder_set", "transcoders": uris, **HOOKS, **(extra or {})}
    (root / "org" / "listed").mkdir(parents=True)
    (root / "org" / "listed" / "config.yaml").write_text(yaml.safe_dump(config))
    return original


def test_a_hub_repository_that_lists_files(fake_hub):
    original = publish_list(fake_hub)
    loaded, _ = load_transcoder_from_hub("org/listed")
    x = uniform(3, 4, 5)
    torch.testing.assert_close(loaded(x), original(x))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("activation", ["jump_relu", "topk"])
def test_the_cache_keeps_everything(fake_hub, sequential, activation):
    original = publish_list(fake_hub, activation)
    assert not is_cached("org/listed")
    folder = save_transcoders_to_cache("org/listed", sequential=sequential)
    assert folder == get_cached_path("org/listed")
    assert is_cached("org/listed")
    assert not (fake_hub / "other" / "weights" / "layer_0.safetensors").exists()
    x = uniform(3, 4, 5)
    loaded, config = load_transcoders_from_cache("org/listed")
    torch.testing.assert_close(loaded(x), original(x))
    assert config["scan"] == loaded.scan == "org/listed"
    assert not {"transcoders", "repo_id", "subfolder"} & set(config)
    again, _ = load_transcoder_from_hub("org/listed")  # the downloads are gone: this comes from the cache
    torch.testing.assert_close(again(x), original(x))
    empty_cache("org/listed")
    assert not is_cached("org/listed")


def test_a_failed_save_leaves_the_cache_entry(fake_hub):
    publish_list(fake_hub)
    save_transcoders_to_cache("org/listed", delete_hf_cache=False)
    (fake_hub / "org" / "listed" / "config.yaml").unlink()
    with pytest.raises(FileFormatError, match="holds no transcoder files"):
        save_transcoders_to_cache("org/listed")
    assert is_cached("org/listed")


def test_emptying_the_cache_leaves_strange_files(fake_hub, tmp_path):
    publish_list(fake_hub)
    save_transcoders_to_cache("org/listed")
    mine = get_cache_dir() / "thesis.txt"
    mine.write_text("years of work")
    empty_cache()
    assert mine.exists()
    assert [path.name for path in get_cache_dir().rglob("*")] == ["thesis.txt"]
    empty_cache(cache_dir=tmp_path / "nowhere")


def test_cache_places(tmp_path, monkeypatch):
    assert get_cache_dir() == tmp_path / "cache"
    assert get_cache_dir(tmp_path / "mine") == tmp_path / "mine"
    assert get_cached_path("org/repo/sub@rev") == tmp_path / "cache" / "org" / "repo" / "sub@rev"
    monkeypatch.delenv("CIRCUIT_TRACER_CACHE_DIR")
    assert get_cache_dir() == Path.home() / ".cache" / "circuit_tracer"
    with pytest.raises(InputError, match="not in the cache"):
        load_transcoders_from_cache("org/repo")
    with pytest.raises(InputError, match="needs no cache"):
        get_cached_path(str(tmp_path))


def changeable_config(folder):
    """What config.yaml holds, without the digest that notices changes."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["digest"]
    return config


def test_config_topk_is_honoured(tmp_path):
    original = random_set("relu")
    save_transcoders(original, tmp_path)
    config = changeable_config(tmp_path)

    def load(**extra):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | extra))
        return load_transcoder_from_hub(tmp_path)[0]

    topk = load(activation="topk", k=2)
    assert isinstance(topk.activation(1), TopK)
    assert (topk.encode(uniform(3, 4, 5)) != 0).sum(-1).max() == 2
    with pytest.raises(FileFormatError, match="needs k"):
        load(activation="topk")
    with pytest.raises(FileFormatError, match=r"activation: input should be .*, found 'gelu'"):
        load(activation="gelu")
    with pytest.raises(FileFormatError, match="says jump_relu, the file has no threshold"):
        load(activation="jump_relu")
    published = config | {"activation": "topk", "repo_id": "facebook/crv-8b-instruct-transcoders"}
    published["transcoders"] = [str(tmp_path / f"layer_{layer}.safetensors") for layer in range(3)]
    assert load_transcoders(published).activation(0).k == 128


def test_config_that_contradicts_the_file_is_an_error(tmp_path):
    save_transcoders(random_set("jump_relu"), tmp_path)
    config = changeable_config(tmp_path)
    for extra, message in (
        ({"activation": "relu"}, "the config says relu, the file jump_relu"),
        ({"model_kind": "cross_layer_transcoder"}, "files are circuit-tracer per-layer, a transcoder_set"),
        ({"model_kind": "autoencoder"}, "model_kind: input should be"),
        ({"k": 0}, "k: input should be greater than 0, found 0"),
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | extra))
        with pytest.raises(FileFormatError, match=message):
            load_transcoder_from_hub(tmp_path)
    del config["feature_input_hook"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"do not say where .* Give feature_input_hook"):
        load_transcoder_from_hub(tmp_path)
    load_transcoder_from_hub(tmp_path, feature_input_hook="mlp.hook_in")
    for text in ("[1, 2]", "a: [", "\0"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(FileFormatError, match=r"config\.yaml"):
            load_transcoder_from_hub(tmp_path)


def test_unknown_config_keys_are_ignored_and_kept(tmp_path):
    save_transcoders(random_set(), tmp_path)
    config = changeable_config(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "feature_input_hook_nnsight": "x.y"}))
    assert load_transcoder_from_hub(tmp_path)[1]["feature_input_hook_nnsight"] == "x.y"


def test_folders_without_a_config(tmp_path):
    save_transcoders(random_clt(), tmp_path / "clt")
    save_transcoders(random_set(), tmp_path / "set")
    for kind in ("clt", "set"):
        (tmp_path / kind / "config.yaml").unlink()
    loaded, config = load_transcoder_from_hub(tmp_path / "clt")
    assert (loaded.feature_input_hook, loaded.feature_output_hook) == ("hook_resid_mid", "hook_mlp_out")
    assert config["model_kind"] == "cross_layer_transcoder"
    with pytest.raises(InputError, match="Give feature_input_hook and feature_output_hook"):
        load_transcoder_from_hub(tmp_path / "set")
    assert load_transcoder_from_hub(tmp_path / "set", **HOOKS)[0].feature_output_hook == "mlp.hook_out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="holds no transcoder files"):
        load_transcoder_from_hub(tmp_path / "empty")


def test_a_local_list_is_relative_to_its_config(tmp_path):
    original = random_set()
    original.to_safetensors(tmp_path / "weights")
    names = [f"weights/layer_{layer}.safetensors" for layer in range(3)]
    config = {"model_kind": "transcoder_set", "transcoders": names, **HOOKS}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    x = uniform(3, 4, 5)
    torch.testing.assert_close(load_transcoder_from_hub(tmp_path)[0](x), original(x))


def test_ambiguous_folders_ask_for_a_list(tmp_path):
    layer = {"W_enc": np.zeros((4, 6)), "W_dec": np.zeros((6, 4)), "b_enc": np.zeros(6), "b_dec": np.zeros(4)}
    for name in ("layer_0/average_l0_5", "layer_0/average_l0_9"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / f"{name}.npz", threshold=np.zeros(6), **layer)
    with pytest.raises(InputError, match=r"layer 0 has dictionaries of L0 5, 9\. Say which"):
        load_transcoder_from_hub(tmp_path)
    np.savez(tmp_path / "a_1_2.npz", threshold=np.zeros(6), **layer)
    np.savez(tmp_path / "b.npz", threshold=np.zeros(6), **layer)
    with pytest.raises(FileFormatError, match="cannot tell which layer"):
        load_transcoder_from_hub(tmp_path)
