"""Loading transcoders: from the hub, from a local folder, from named files. Names and defaults are circuit-tracer's.

``dtype`` is what weights are converted to when they are read (None keeps what is stored); ``lazy_encoder`` and
``lazy_decoder`` leave these matrices in their files, mapped, and read rows on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import TensorFile, open_tensor_file
from circuit_tracer.transcoders import cache, hub
from circuit_tracer.transcoders.base import Scan, Transcoders
from circuit_tracer.transcoders.config import CONFIG_NAME, TranscoderConfig, read_config, validate_config, write_config
from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.formats import read_layers
from circuit_tracer.transcoders.formats.folder import open_folder
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.writing import activation_keys, begin_folder, native_names
from circuit_tracer.transcoders.layer_weights import LayerWeights, require_uniform
from circuit_tracer.transcoders.references import HubReference, parse_reference
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet, require_all_layers

Device = torch.device | str | None

# Published TopK sets whose config does not give k.
_KNOWN_K = {"facebook/crv-8b-instruct-transcoders": 128}


def load_transcoder_from_hub(
    hf_ref: str | Path,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
    cache_dir: str | Path | None = None,
    use_cache: bool = True,
    *,
    feature_input_hook: str | None = None,
    feature_output_hook: str | None = None,
) -> tuple[Transcoders, dict[str, Any]]:
    """Transcoders and their config (a dict with all keys of config.yaml) for a folder or a hub name.

    ``hf_ref`` is a local folder (absolute or relative), `org/repo[/sub/folder][@revision]`, or an alias. An entry of
    the cache (`save_transcoders_to_cache`) is preferred to the hub when ``use_cache``. A local folder needs no
    config.yaml if its files are recognised and the hooks are given or fixed by the format.
    Raises InputError (no such folder or repository, hub not reachable), FileFormatError (files or config unusable).
    """
    reference = parse_reference(hf_ref)
    if isinstance(reference, HubReference) and use_cache and cache.is_cached(str(hf_ref), cache_dir):
        reference = cache.get_cached_path(str(hf_ref), cache_dir)
    hooks = {"feature_input_hook": feature_input_hook, "feature_output_hook": feature_output_hook}
    given = {key: value for key, value in hooks.items() if value is not None}
    if isinstance(reference, HubReference):
        config = hub_config(reference) | given
        files = _hub_files(reference, config)
    else:
        files = _listed_or_found(reference)
        config = _folder_config(reference, files, given)
    return _build(config, files, device, dtype, lazy_encoder, lazy_decoder), config


def load_transcoders(
    config: dict[str, Any],
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
) -> Transcoders:
    """Transcoders of a config that names its files: ``transcoders``, or ``repo_id`` (with subfolder and revision)."""
    checked = validate_config(config, "the transcoder config")
    if checked.repo_id is not None:
        reference = HubReference(checked.repo_id, checked.subfolder, checked.revision)
        files = _hub_files(reference, config)
    elif checked.transcoders:
        files = _open_listed(checked.transcoders, Path())
    else:
        raise InputError("the transcoder config names no files: it needs `transcoders` or `repo_id`.")
    return _build(config, files, device, dtype, lazy_encoder, lazy_decoder)


def load_transcoder_set(
    transcoder_paths: Mapping[int, str | Path],
    scan: Scan,
    feature_input_hook: str,
    feature_output_hook: str,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = True,
    lazy_decoder: bool = True,
    activation: str | None = None,
    k: int | None = None,
) -> TranscoderSet:
    """Per-layer transcoders from one file a layer, in any per-layer format."""
    require_all_layers(transcoder_paths)
    config = {
        "model_kind": TranscoderSet.kind,
        "feature_input_hook": feature_input_hook,
        "feature_output_hook": feature_output_hook,
        "scan": scan,
        "activation": activation,
        "k": k,
    }
    files = [open_tensor_file(transcoder_paths[layer]) for layer in range(len(transcoder_paths))]
    built = _build(config, files, device, dtype, lazy_encoder, lazy_decoder)
    assert isinstance(built, TranscoderSet)
    return built


def load_clt(
    clt_path: str | Path,
    feature_input_hook: str = "hook_resid_mid",
    feature_output_hook: str = "hook_mlp_out",
    scan: Scan = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.bfloat16,
    lazy_decoder: bool = True,
    lazy_encoder: bool = False,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder from the files of a folder, in any cross-layer format. Note the dtype's default."""
    hooks = {"feature_input_hook": feature_input_hook, "feature_output_hook": feature_output_hook}
    config = {"model_kind": CrossLayerTranscoder.kind, "scan": scan, **hooks}
    built = _build(config, open_folder(Path(clt_path)), device, dtype, lazy_encoder, lazy_decoder)
    assert isinstance(built, CrossLayerTranscoder)
    return built


def load_gemma_scope_2_clt(
    paths: Mapping[int, str | Path],
    feature_input_hook: str = "hook_resid_mid",
    feature_output_hook: str = "hook_mlp_out",
    scan: Scan = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.bfloat16,
    lazy_decoder: bool = False,
    lazy_encoder: bool = False,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder from one file a layer; a repeated last file is recognised and used once."""
    require_all_layers(paths)
    hooks = {"feature_input_hook": feature_input_hook, "feature_output_hook": feature_output_hook}
    config = {"model_kind": CrossLayerTranscoder.kind, "scan": scan, **hooks}
    files = [open_tensor_file(paths[layer]) for layer in range(len(paths))]
    built = _build(config, files, device, dtype, lazy_encoder, lazy_decoder)
    assert isinstance(built, CrossLayerTranscoder)
    return built


def load_transcoder(
    path: str | Path,
    layer: int,
    activation_fn: str | None = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = True,
    lazy_decoder: bool = True,
    *,
    k: int | None = None,
) -> SingleLayerTranscoder:
    """One layer's transcoder from one file, in any per-layer format."""
    _, (weights,) = read_layers([open_tensor_file(path)])
    return SingleLayerTranscoder.from_weights(
        with_activation(weights, activation_fn, k), layer,
        device=device, dtype=dtype, lazy_encoder=lazy_encoder, lazy_decoder=lazy_decoder,
    )  # fmt: skip


def load_gemma_scope_transcoder(
    path: str | Path,
    layer: int,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    lazy_encoder: bool = False,
    lazy_decoder: bool = False,
) -> SingleLayerTranscoder:
    """One layer of Gemma Scope 1: a local .npz, or a file of google/gemma-scope-2b-pt-transcoders."""
    if not Path(path).is_file():
        path = hub.download_file(HubReference("google/gemma-scope-2b-pt-transcoders", None, revision), str(path))
    return load_transcoder(path, layer, None, device, dtype, lazy_encoder, lazy_decoder)


def load_gemma_scope_2_transcoder(
    path: str | Path,
    layer: int,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = False,
) -> SingleLayerTranscoder:
    """One layer of Gemma Scope 2."""
    return load_transcoder(path, layer, None, device, dtype, lazy_encoder, lazy_decoder)


def save_transcoders(transcoders: Transcoders, folder: str | Path, model_name: str | None = None) -> Path:
    """Write native files and config.yaml; the config comes last, so that it marks a complete folder."""
    folder = Path(folder)
    begin_folder(folder, native_names(transcoders.kind, transcoders.n_layers))
    transcoders.to_safetensors(folder)
    config = {
        "model_name": model_name,
        "model_kind": transcoders.kind,
        "feature_input_hook": transcoders.feature_input_hook,
        "feature_output_hook": transcoders.feature_output_hook,
        "scan": transcoders.scan,
    }
    write_config(config | activation_keys(transcoders.activation(0)), folder)
    return folder


def with_activation(weights: LayerWeights, activation: str | None, k: int | None) -> LayerWeights:
    """Weights with the activation that a config names; FileFormatError if the file says otherwise, or k is unknown."""
    stored = weights.activation_name
    if activation is None:
        return weights
    if activation not in ("relu", "jump_relu", "topk"):
        raise InputError(f"activation {activation!r} is unknown: use relu, jump_relu or topk.")
    if (stored is not None and stored != activation) or (stored is None and activation == "jump_relu"):
        raise FileFormatError(
            f"{weights.source}: the config says {activation}, the file {stored or 'has no threshold and no k'}. "
            "Correct `activation` in the config."
        )
    if activation != "topk":
        return weights
    if k is not None and weights.k not in (None, k):
        raise FileFormatError(
            f"{weights.source}: the config says k = {k}, the file k = {weights.k}. Correct the config."
        )
    if weights.k is None and k is None:
        raise FileFormatError(f"{weights.source}: activation topk needs k, and neither config nor file gives it.")
    return replace(weights, k=weights.k or k)


# ---- where the files are


def hub_config(reference: HubReference) -> dict[str, Any]:
    """config.yaml of a hub folder with the derived keys."""
    config = read_config(hub.download_file(reference, CONFIG_NAME))
    place = {"repo_id": reference.repo_id, "revision": reference.revision, "subfolder": reference.path}
    return config | place | {"scan": reference.scan}


def _hub_files(reference: HubReference, config: dict[str, Any]) -> list[TensorFile]:
    checked = validate_config(config, f"{CONFIG_NAME} of {reference}")
    if checked.transcoders:
        return _open_listed(checked.transcoders, Path())
    clt = checked.model_kind == CrossLayerTranscoder.kind
    return open_folder(hub.download_folder(reference, ["*.safetensors"] if clt else ["layer_*.safetensors"]))


def _listed_or_found(folder: Path) -> list[TensorFile]:
    path = folder / CONFIG_NAME
    listed = read_config(path).get("transcoders") if path.is_file() else None
    return _open_listed(listed, folder) if isinstance(listed, list) and listed else open_folder(folder)


def _open_listed(names: list[str], folder: Path) -> list[TensorFile]:
    """Files of a config's list, in order: hub URIs are downloaded, paths are relative to ``folder``."""
    remote = dict(zip(uris, hub.download_uris(uris), strict=True)) if (uris := _uris(names)) else {}
    return [open_tensor_file(remote.get(name) or folder / name) for name in names]


def _uris(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name.startswith("hf://")))


def _folder_config(folder: Path, files: list[TensorFile], given: dict[str, str]) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if path.is_file():
        return read_config(path) | given
    found, _ = read_layers(files)
    if found.hooks is not None:
        given = dict(zip(("feature_input_hook", "feature_output_hook"), found.hooks, strict=True)) | given
    if len(given) < 2:
        raise InputError(
            f"{folder} has no {CONFIG_NAME}, and the format {found.name} does not say where its transcoders read and "
            "write. Give feature_input_hook and feature_output_hook, or write them into a config.yaml."
        )
    return {"model_kind": found.kind, **given}


# ---- from files to transcoders


def _build(
    config: dict[str, Any],
    files: list[TensorFile],
    device: Device,
    dtype: torch.dtype | None,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> Transcoders:
    checked = validate_config(config, "the transcoder config")
    found, layers = read_layers(files)
    _require_kind(checked, found)
    layers = [with_activation(layer, checked.activation, _k(checked)) for layer in layers]
    require_uniform(layers)
    place: dict[str, Any] = {
        "device": device, "dtype": dtype, "lazy_encoder": lazy_encoder, "lazy_decoder": lazy_decoder,
    }  # fmt: skip
    hooks: dict[str, Any] = {
        "feature_input_hook": checked.feature_input_hook,
        "feature_output_hook": checked.feature_output_hook,
        "scan": checked.scan,
    }
    if found.kind == CrossLayerTranscoder.kind:
        return CrossLayerTranscoder.from_weights(layers, **hooks, **place)
    singles = {depth: SingleLayerTranscoder.from_weights(layer, depth, **place) for depth, layer in enumerate(layers)}
    return TranscoderSet(singles, **hooks)


def _k(config: TranscoderConfig) -> int | None:
    return config.k or _KNOWN_K.get(config.repo_id or "")


def _require_kind(config: TranscoderConfig, found: Format) -> None:
    if config.model_kind != found.kind:
        raise FileFormatError(
            f"the config says model_kind {config.model_kind}, but the files are {found.name}, a {found.kind}. "
            "Correct the config or point to other files."
        )
