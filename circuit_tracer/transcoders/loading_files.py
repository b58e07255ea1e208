"""Loading transcoders from files that somebody names. Names and defaults are circuit-tracer's; arguments as in `loading.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import hub, locate
from circuit_tracer.transcoders.base import Scan, Transcoders
from circuit_tracer.transcoders.building import Device, build, build_layer, with_arguments
from circuit_tracer.transcoders.config import config_source, folder_config
from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.locate import LayerFiles
from circuit_tracer.transcoders.references import HubReference
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet, require_layers

CLT_HOOKS = ("hook_resid_mid", "hook_mlp_out")  # circuit-tracer's defaults


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
    """Per-layer transcoders from one file a layer, of all layers or of some, in any per-layer format.

    A config.yaml beside them counts too.

    Args:
        transcoder_paths: Files by layer.
        scan: Name of the dictionary, by which feature pages are found.
        feature_input_hook: Where features read, such as `hook_resid_mid`.
        feature_output_hook: Where features write, such as `hook_mlp_out`.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.
        activation: Name of the activation function, where files do not say.
        k: Of TopK, where files do not say.

    Returns:
        The transcoders.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    given = {
        "model_kind": TranscoderSet.kind,
        "feature_input_hook": feature_input_hook,
        "feature_output_hook": feature_output_hook,
        "activation": activation,
        "k": k,
    }
    files = _by_layer(transcoder_paths)
    built = _build_named(files.files[0].path.parent, files, given, scan, device, dtype, lazy_encoder, lazy_decoder)
    assert isinstance(built, TranscoderSet)
    return built


def load_clt(
    clt_path: str | Path,
    feature_input_hook: str | None = None,
    feature_output_hook: str | None = None,
    scan: Scan = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.bfloat16,
    lazy_decoder: bool = True,
    lazy_encoder: bool = False,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder from the files of a folder, in any cross-layer format. Note the dtype's default.

    Hooks that neither arguments nor files nor a config.yaml in the folder name are circuit-tracer's defaults,
    hook_resid_mid and hook_mlp_out, with a warning.

    Args:
        clt_path: The folder.
        feature_input_hook: Where features read, such as `hook_resid_mid`.
        feature_output_hook: Where features write, such as `hook_mlp_out`.
        scan: Name of the dictionary, by which feature pages are found.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_decoder: Leave decoder rows in the file until they are read.
        lazy_encoder: Leave encoder rows in the file until they are read.

    Returns:
        The transcoder.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    folder = Path(clt_path)
    files = locate.in_folder(folder, {})
    hooks = {"feature_input_hook": feature_input_hook, "feature_output_hook": feature_output_hook}
    given = {"model_kind": CrossLayerTranscoder.kind, **hooks}
    built = _build_named(folder, files, given, scan, device, dtype, lazy_encoder, lazy_decoder)
    assert isinstance(built, CrossLayerTranscoder)
    return built


def load_gemma_scope_2_clt(
    paths: Mapping[int, str | Path],
    feature_input_hook: str | None = None,
    feature_output_hook: str | None = None,
    scan: Scan = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.bfloat16,
    lazy_decoder: bool = False,
    lazy_encoder: bool = False,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder from one file a layer; a repeated last file is recognised and used once. Hooks as `load_clt`.

    Args:
        paths: Files by layer.
        feature_input_hook: Where features read, such as `hook_resid_mid`.
        feature_output_hook: Where features write, such as `hook_mlp_out`.
        scan: Name of the dictionary, by which feature pages are found.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_decoder: Leave decoder rows in the file until they are read.
        lazy_encoder: Leave encoder rows in the file until they are read.

    Returns:
        The transcoder.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    files = _by_layer(paths)
    hooks = {"feature_input_hook": feature_input_hook, "feature_output_hook": feature_output_hook}
    given = {"model_kind": CrossLayerTranscoder.kind, **hooks}
    built = _build_named(files.files[0].path.parent, files, given, scan, device, dtype, lazy_encoder, lazy_decoder)
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
    """One layer's transcoder from one file, in any per-layer format; a config.yaml beside it counts too.

    Args:
        path: The file.
        layer: The layer.
        activation_fn: Name of the activation function, where the file does not say.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.
        k: Of TopK, where the file does not say.

    Returns:
        The transcoder.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    file = open_tensor_file(path)
    source = config_source(file.path.parent)
    config = with_arguments(folder_config(file.path.parent), {"activation": activation_fn, "k": k}, source)
    return build_layer(config, file, layer, source, device, dtype, lazy_encoder, lazy_decoder)


def load_gemma_scope_transcoder(
    path: str | Path,
    layer: int,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    lazy_encoder: bool = False,
    lazy_decoder: bool = False,
) -> SingleLayerTranscoder:
    """One layer of Gemma Scope 1: a local .npz, or a file of google/gemma-scope-2b-pt-transcoders.

    Args:
        path: A local .npz, or a file's name in the repository.
        layer: The layer.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        revision: Branch, tag or commit.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.

    Returns:
        The transcoder.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
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
    """One layer of Gemma Scope 2.

    Args:
        path: The file.
        layer: The layer.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.

    Returns:
        The transcoder.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    return load_transcoder(path, layer, None, device, dtype, lazy_encoder, lazy_decoder)


def _by_layer(paths: Mapping[int, str | Path]) -> LayerFiles:
    layers = list(require_layers(paths))
    return LayerFiles([open_tensor_file(paths[layer]) for layer in layers], layers)


def _build_named(
    folder: Path,
    files: LayerFiles,
    given: dict[str, Any],
    scan: Scan,
    device: Device,
    dtype: torch.dtype | None,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> Transcoders:
    """What a config.yaml in ``folder`` says must agree with the arguments ``given``; cross-layer ones have default hooks."""
    source = config_source(folder)
    config = with_arguments(folder_config(folder), given, source) | {"scan": scan}
    default = CLT_HOOKS if given["model_kind"] == CrossLayerTranscoder.kind else None
    return build(config, files, source, device, dtype, lazy_encoder, lazy_decoder, default)[0]
