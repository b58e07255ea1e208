"""Loading transcoders from the hub or from a local folder, and saving them. Names and defaults are circuit-tracer's.

``dtype`` is what weights are converted to when they are read (None keeps what is stored); ``lazy_encoder`` and
``lazy_decoder`` leave these matrices in their files, mapped, and read rows on demand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import locked, require_writable_folder
from circuit_tracer.progress import doing
from circuit_tracer.transcoders import cache, hub, locate
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.building import NO_TRANSCODER, Device, build, with_arguments
from circuit_tracer.transcoders.config import (
    CONFIG_NAME,
    config_source,
    folder_config,
    read_config,
    validate_config,
    write_config,
)
from circuit_tracer.transcoders.formats.writing import activation_keys, begin_folder, native_names
from circuit_tracer.transcoders.locate import LayerFiles
from circuit_tracer.transcoders.references import HubReference, resolve
from circuit_tracer.transcoders.selection import Selection


@doing("loading the dictionary")
def load_dictionary(
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
    select: str | Selection | None = None,
    input_shift: bool | None = None,
) -> tuple[Transcoders, dict[str, Any]]:
    """Transcoders or autoencoders, and their config (a dict with all keys of config.yaml), for a folder or a hub name.

    Autoencoders are a set whose two hooks are one place (`Transcoders.is_autoencoder`).

    ``hf_ref`` is a local folder (absolute or relative), `org/repo[/sub/folder][@revision]`, or an alias. An entry of the
    cache (`save_transcoders_to_cache`) is preferred to the hub when ``use_cache``. No config.yaml is needed if the files
    are recognised and the hooks are given, said by them, or fixed by the format. ``select`` says which of several
    dictionaries is meant (selection.py), as does the end of a reference, `org/repo:width=16k,l0=small`; config["l0"] is
    then what was taken in layers that have several.

    Args:
        hf_ref: Hub reference, `org/name[/subfolder][@revision]`.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.
        cache_dir: The cache; None: `get_cache_dir()`.
        use_cache: Prefer an entry of the cache to the hub.
        feature_input_hook: Where features read, such as `hook_resid_mid`.
        feature_output_hook: Where features write, such as `hook_mlp_out`.
        select: Which of several dictionaries is meant (selection.py).
        input_shift: Whether older EleutherAI transcoders subtract b_dec from their input; None: what reconstructs a model's
            MLPs better, once they meet one (attribution/input_shift.py).

    Returns:
        (transcoders, plain values that say what they are and where they come from).

    Raises:
        InputError: For no such folder or repository, a hub that is not reached, several dictionaries.
        FileFormatError: For files or a config that cannot be used.

    Examples:
        >>> from circuit_tracer.demo import TRANSCODER
        >>> from circuit_tracer.transcoders.loading import load_dictionary
        >>> transcoders, config = load_dictionary(TRANSCODER)
        >>> config["model_kind"], transcoders.n_layers
        ('cross_layer_transcoder', 4)
    """
    reference, selection = resolve(hf_ref, select)
    if isinstance(reference, HubReference) and use_cache and cache.is_cached(str(reference), cache_dir):
        reference, selection = cache.get_cached_path(str(reference), cache_dir), {}
    if isinstance(reference, HubReference):
        source, config = f"{CONFIG_NAME} of {reference}", hub_config(reference)
        files = _hub_files(reference, config)
    else:
        source, config = config_source(reference), folder_config(reference)
        validate_config(config, source)
        files = _listed_or_found(reference, config, selection)
    if files.l0:
        config["l0"] = files.l0
    given = {
        "feature_input_hook": feature_input_hook,
        "feature_output_hook": feature_output_hook,
        "input_shift": input_shift,
    }
    return build(with_arguments(config, given, source), files, source, device, dtype, lazy_encoder, lazy_decoder)


def load_transcoder_from_hub(
    hf_ref: str | Path,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
    cache_dir: str | Path | None = None,
    use_cache: bool = True,
    **given: Any,
) -> tuple[Transcoders, dict[str, Any]]:
    """As `load_dictionary`, of transcoders alone: FileFormatError for autoencoders, with which nothing can be traced.

    Args:
        hf_ref: Hub reference, preset name, or folder.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.
        cache_dir: The cache; None: `get_cache_dir()`.
        use_cache: Use an entry of the cache if there is one.
        **given: `select`, `feature_input_hook`, `feature_output_hook`, `input_shift`, as `load_dictionary` has them.

    Returns:
        (transcoders, plain values that say what they are and where they come from).

    Raises:
        InputError: As `load_dictionary`.
        FileFormatError: Also for autoencoders, with which nothing can be traced.
    """
    transcoders, config = load_dictionary(
        hf_ref, device, dtype, lazy_encoder, lazy_decoder, cache_dir, use_cache, **given
    )
    if transcoders.is_autoencoder:
        raise FileFormatError(f"{hf_ref} is a sparse autoencoder at {transcoders.feature_input_hook}: {NO_TRANSCODER}")
    return transcoders, config


def load_transcoders(
    config: dict[str, Any],
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
) -> Transcoders:
    """Transcoders of a config that names its files: ``transcoders``, or ``repo_id`` (with subfolder and revision).

    Args:
        config: As in config.yaml.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.

    Returns:
        The transcoders.

    Raises:
        InputError: For files that are not there.
        FileFormatError: For files that are damaged or not of the format.
    """
    checked = validate_config(config, "the transcoder config")
    if checked.repo_id is not None:
        reference = HubReference(checked.repo_id, checked.subfolder, checked.revision, checked.selection)
        files = _hub_files(reference, config)
    elif checked.transcoders:
        files = locate.listed(checked.transcoders, Path())
    else:
        raise InputError("the transcoder config names no files: it needs `transcoders` or `repo_id`.")
    return build(config, files, "the transcoder config", device, dtype, lazy_encoder, lazy_decoder)[0]


def save_transcoders(transcoders: Transcoders, folder: str | Path, model_name: str | None = None) -> Path:
    """Write native files and config.yaml; the config comes last, so that it marks a complete folder.

    Args:
        transcoders: The dictionary.
        folder: Made if needed.
        model_name: Of the model that they are of.

    Returns:
        The folder.
    """
    transcoders.require_native()
    folder = Path(folder)
    config = {
        "model_name": model_name,
        "model_kind": transcoders.kind,
        "feature_input_hook": transcoders.feature_input_hook,
        "feature_output_hook": transcoders.feature_output_hook,
        "scan": transcoders.scan,
    }
    with locked(require_writable_folder(folder)):  # another process may write another dictionary there
        begin_folder(folder, native_names(transcoders.kind, transcoders.layers))
        transcoders.to_safetensors(folder)
        write_config(config | activation_keys(transcoders.activation(transcoders.layers[0])), folder)
    return folder


# ---- where the files are


def hub_config(reference: HubReference) -> dict[str, Any]:
    """config.yaml of a hub folder, if there is one, with the derived keys."""
    path = hub.optional_file(reference, CONFIG_NAME)
    config = {} if path is None else read_config(path)
    place = {"repo_id": reference.repo_id, "revision": reference.revision, "subfolder": reference.path}
    selection = {} if reference.selection is None else {"selection": reference.selection}
    return config | place | selection | {"scan": reference.scan}


def described_on_hub(reference: HubReference) -> dict[str, Any] | None:
    """config.yaml of a hub folder with the derived keys, or, without one, what names of files tell; None: it is a model's.

    No weights are fetched.
    """
    config = hub_config(reference)
    if "model_kind" in config:
        return config
    names = hub.list_files(reference)
    if "config.json" in names and any(name.startswith(("model", "pytorch_model", "tokenizer")) for name in names):
        return None
    found = locate.found_on_hub(reference)
    layers = None if found.layers is None else sorted(found.layers)
    return (
        config | {"layers_with_transcoders": layers, "files": len(found.files)} | ({"l0": found.l0} if found.l0 else {})
    )


def _hub_files(reference: HubReference, config: dict[str, Any]) -> LayerFiles:
    listed = _list_of(config)
    return locate.listed(listed, Path()) if listed else locate.on_hub(reference)


def _listed_or_found(folder: Path, config: dict[str, Any], selection: Selection) -> LayerFiles:
    listed = _list_of(config)
    return locate.listed(listed, folder) if listed else locate.in_folder(folder, selection)


def _list_of(config: dict[str, Any]) -> list[str]:
    """The files that a config lists; none if what stands there is no list of names, which building refuses."""
    listed = config.get("transcoders")
    return listed if isinstance(listed, list) and all(isinstance(name, str) for name in listed) else []
