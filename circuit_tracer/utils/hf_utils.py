"""circuit-tracer's `circuit_tracer.utils.hf_utils`. Errors of the hub's client pass through the functions that download, as
they do there; `load_transcoder_from_hub` says what to do about them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from huggingface_hub import get_token, hf_api, hf_hub_download, snapshot_download

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.loading import load_transcoder_from_hub, load_transcoders
from circuit_tracer.transcoders.references import parse_hub_uri

__all__ = [
    "HfUri",
    "download_hf_uri",
    "download_hf_uris",
    "iter_transcoder_paths",
    "load_transcoder_from_hub",
    "load_transcoders",
    "parse_hf_uri",
    "resolve_transcoder_paths",
]


class HfUri(NamedTuple):
    """A file or folder of a repository on the hub."""

    repo_id: str
    file_path: str | None
    revision: str | None

    @classmethod
    def from_str(cls, hf_ref: str) -> HfUri:
        """`org/repo[/sub/folder][@revision]`, or `hf://...`."""
        if hf_ref.startswith("hf://"):
            return parse_hf_uri(hf_ref)
        name, _, revision = hf_ref.partition("@")
        parts = name.split("/")
        return cls("/".join(parts[:2]), "/".join(parts[2:]) or None, revision or None)


def parse_hf_uri(uri: str) -> HfUri:
    """`hf://org/repo/path/to/file?revision=REV`. Raises InputError for anything else."""
    found = parse_hub_uri(uri)
    return HfUri(found.repo_id, found.path, found.revision)


def download_hf_uri(uri: str) -> str:
    """The local path of one `hf://` file."""
    return _download(parse_hf_uri(uri), None)


def download_hf_uris(uris: Iterable[str], max_workers: int = 8) -> dict[str, str]:
    """Local paths of `hf://` files, by URI, several at a time. PermissionError: one is gated, and no token is set."""
    parsed = {uri: parse_hf_uri(uri) for uri in uris}
    token = get_token()
    for repo_id in {each.repo_id for each in parsed.values()}:
        if hf_api.repo_info(repo_id=repo_id, token=token).gated is not False and token is None:
            raise PermissionError(
                f"{repo_id} is gated: accept its terms on huggingface.co and log in with `hf auth login`"
            )
    with ThreadPoolExecutor(max_workers) as pool:
        return dict(zip(parsed, pool.map(lambda each: _download(each, token), parsed.values()), strict=True))


def resolve_transcoder_paths(config: dict[str, Any]) -> dict[int, str]:
    """Local paths of the layers that a config names, downloaded."""
    named = config.get("transcoders")
    if named is None:
        return dict(iter_transcoder_paths(config))
    local = download_hf_uris(path for path in named if path.startswith("hf://"))
    return {layer: local.get(path, path) for layer, path in enumerate(named)}


def iter_transcoder_paths(config: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """(layer, local path) of each, downloaded one by one where a config lists them."""
    if config.get("transcoders") is not None:
        for layer, path in enumerate(config["transcoders"]):
            yield layer, download_hf_uri(path) if path.startswith("hf://") else path
        return
    prefix = f"{config['subfolder']}/" if config.get("subfolder") else ""
    folder = snapshot_download(
        config["repo_id"], revision=config.get("revision"), allow_patterns=[f"{prefix}layer_*.safetensors"]
    )
    layer = 0
    while os.path.isfile(path := os.path.join(folder, prefix, f"layer_{layer}.safetensors")):
        yield layer, path
        layer += 1


def _download(uri: HfUri, token: str | None) -> str:
    if uri.file_path is None:
        raise InputError(f"{uri.repo_id} is a repository; name a file in it: hf://{uri.repo_id}/path/to/file")
    return str(hf_hub_download(repo_id=uri.repo_id, filename=uri.file_path, revision=uri.revision, token=token))
