"""circuit-tracer's helpers for the hub, for offloading and for transcoders, under its names and parameters."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from circuit_tracer.errors import InputError
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder, load_transcoder_set
from circuit_tracer.utils import disk_offload, hf_utils
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig, convert_nnsight_config_to_transformerlens

PEER = Path(__file__).parents[1] / "interventions" / "peer"
URI = "hf://org/repo/folder/model.bin?revision=abc"


def test_references_to_the_hub() -> None:
    assert hf_utils.HfUri.from_str("org/repo") == ("org/repo", None, None)
    assert hf_utils.HfUri.from_str("org/repo/sub/folder@v1") == ("org/repo", "sub/folder", "v1")
    assert hf_utils.HfUri.from_str(URI) == hf_utils.parse_hf_uri(URI) == ("org/repo", "folder/model.bin", "abc")
    with pytest.raises(InputError, match="not a hub URI"):
        hf_utils.parse_hf_uri("https://example.org/x")
    with pytest.raises(InputError, match="name a file in it"):
        hf_utils.download_hf_uri("hf://org/repo")


def test_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    gated: dict[str, Any] = {"org/repo": False, "org/closed": "manual"}
    monkeypatch.setattr(
        hf_utils, "hf_hub_download", lambda **words: asked.append(words) or f"/cache/{words['filename']}"
    )
    monkeypatch.setattr(hf_utils.hf_api, "repo_info", lambda repo_id, token: SimpleNamespace(gated=gated[repo_id]))
    monkeypatch.setattr(hf_utils, "get_token", lambda: None)
    assert hf_utils.download_hf_uris([URI, URI]) == {URI: "/cache/folder/model.bin"}
    assert [words["revision"] for words in asked] == ["abc"]
    with pytest.raises(PermissionError, match="org/closed is gated"):
        hf_utils.download_hf_uris(["hf://org/closed/a.bin"])
    assert len(asked) == 1
    monkeypatch.setattr(hf_utils, "get_token", lambda: "hf_x")
    named = {"transcoders": ["hf://org/closed/a.npz", "local.npz"]}
    assert hf_utils.resolve_transcoder_paths(named) == {0: "/cache/a.npz", 1: "local.npz"}
    assert dict(hf_utils.iter_transcoder_paths(named)) == {0: "/cache/a.npz", 1: "local.npz"}
    (tmp_path / "sub").mkdir()
    for layer in (0, 1, 10):
        (tmp_path / "sub" / f"layer_{layer}.safetensors").touch()
    monkeypatch.setattr(hf_utils, "snapshot_download", lambda *_, **__: str(tmp_path))
    found = hf_utils.resolve_transcoder_paths({"repo_id": "org/repo", "subfolder": "sub"})
    assert found == {layer: str(tmp_path / "sub" / f"layer_{layer}.safetensors") for layer in (0, 1)}


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_modules_put_aside_come_back(kind: Any) -> None:
    modules = nn.ModuleList([nn.Linear(3, 2), nn.LayerNorm(2)])
    before = [weight.clone() for weight in modules.parameters()]
    reload = disk_offload.offload_modules(modules, kind)
    assert {weight.device.type for weight in modules.parameters()} == {"meta" if kind == "disk" else "cpu"}
    for each in reload:
        each()
    assert all(torch.equal(a, b) for a, b in zip(modules.parameters(), before, strict=True))
    assert disk_offload.cleanup_all_offload_files() == 0
    assert len(disk_offload.offload_modules(nn.Linear(2, 2), kind)) == 1
    assert len(disk_offload.offload_modules(nn.ModuleDict({"a": nn.Linear(2, 2)}), kind)) == 1
    assert disk_offload.cleanup_all_offload_files() == (2 if kind == "disk" else 0)
    with pytest.raises(InputError, match="'cpu' or 'disk'"):
        disk_offload.offload_modules(modules, "cloud")  # type: ignore[arg-type]


def test_arguments_of_transcoders() -> None:
    paths = {layer: PEER / "plt-skip" / f"layer_{layer}.safetensors" for layer in range(3)}
    hooks = ("hook_resid_mid", "hook_mlp_out")
    loaded = load_transcoder_set(paths, "scan", *hooks, None, torch.float32, "gemma-scope", False, True)
    assert isinstance(loaded, TranscoderSet)
    x = torch.randn(3, 4, 16)
    acts = loaded.encode(input_acts=x)
    torch.testing.assert_close(loaded.decode(acts=acts, input_acts=x), loaded(x))
    with pytest.raises(InputError, match="input_acts"):
        loaded.decode(acts)
    single = loaded[1]
    sparse, _ = single.encode_sparse(x[1], zero_positions=slice(0, 0))
    torch.testing.assert_close(single.decode_sparse(sparse, x[1])[0], single.decode(acts[1], x[1]))
    index = torch.tensor([3, 1])
    assert torch.equal(single._get_decoder_vectors(index), single.W_dec[index])
    assert torch.equal(loaded._get_decoder_vectors(1, index), single.W_dec[index])
    assert torch.equal(single._get_decoder_vectors(), single.W_dec)
    assert torch.equal(load_relu_transcoder(str(paths[1]), 1).W_dec, single.W_dec)
    clt = load_clt(PEER / "clt", dtype=torch.float32)
    assert clt._get_decoder_vectors(1, index.numpy()).shape == (2, 2, 16)
    components = clt.compute_attribution_components(x)
    assert components["reconstruction"].shape == x.shape
    expected = clt.decode(components["activation_matrix"], x)
    torch.testing.assert_close(components["reconstruction"], expected)


def test_configurations() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=3, hidden_size=16, num_attention_heads=4, vocab_size=47, architectures=["Llama"]
    )
    made = convert_nnsight_config_to_transformerlens(config)
    assert (made.n_layers, made.d_model, made.n_heads, made.d_vocab) == (3, 16, 4, 47)
    assert made.original_architecture == "Llama"
    assert UnifiedConfig.from_dict(made.to_dict()) == made
    made.n_layers = 2
    assert made.to_dict()["n_layers"] == 2
    with pytest.raises(InputError, match="n_heads is a str"):
        UnifiedConfig.from_dict({"n_layers": 1, "n_heads": "four"})
