"""From files to transcoders: what files, config and caller say about kind, hooks and activation is put together, or refused.

Whoever says something counts: the tensors and the configuration beside them, config.yaml of the set, the caller's arguments.
Two that disagree are an error that names both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from circuit_tracer.errors import FileFormatError, InputError, shortened, warn
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.config import TranscoderConfig, validate_config
from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.formats import gemma_scope_1, gemma_scope_2_clt, gemma_scope_2_plt, read_layers
from circuit_tracer.transcoders.formats.folding import shifted_bias
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.layer_weights import LayerWeights, require_uniform
from circuit_tracer.transcoders.locate import LayerFiles
from circuit_tracer.transcoders.places import AUTOENCODED, READABLE, WRITABLE, Place
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Device = torch.device | str | None
HOOKS = ("feature_input_hook", "feature_output_hook")

NO_TRANSCODER = (
    "it replaces no MLP, so no prompt can be traced with it alone. Trace with transcoders or neurons (-t), and read one of its "
    "features as a target (--target sae:FOLDER:LAYER:POSITION:FEATURE, attribution.latent_target); at attention's outputs its "
    "features are nodes too (--attention). `circuit-tracer evaluate`, `info`, `features build`, `intervene` and `steer` take "
    "it as it is (-t)."
)

# Published TopK sets whose config does not give k.
_KNOWN_K = {"facebook/crv-8b-instruct-transcoders": 128}
# circuit-tracer's names for how files are read -> the formats that these are.
_SPECIAL = {
    "gemma-scope": (gemma_scope_1.FORMAT,),
    "gemma-scope-2": (gemma_scope_2_plt.FORMAT, gemma_scope_2_clt.FORMAT),
}


def build(
    config: Mapping[str, Any],
    files: LayerFiles,
    source: str,
    device: Device,
    dtype: torch.dtype | None,
    lazy_encoder: bool,
    lazy_decoder: bool,
    default_hooks: tuple[str, str] | None = None,
) -> tuple[Transcoders, dict[str, Any]]:
    """Transcoders of the files, and the config completed by what these say.

    ``config`` has the keys of config.yaml, none of them required; ``source`` names it in messages. ``default_hooks`` are
    assumed, with a warning, where neither says where they stand and the format has none that are usual. Raises FileFormatError
    where the config contradicts the files, and for what these hold and nobody understands; InputError if nobody says where they
    stand.
    """
    found, layers = read_layers(files.files)
    numbers = _numbers(files, layers, found)
    for number, layer in zip(numbers, layers, strict=True):
        require_layer(layer, number)
    completed = _completed(config, found, layers, source)
    if default_hooks is not None and found.hooks is None:
        found = replace(found, hooks=default_hooks, hooks_note="circuit-tracer's defaults, which others need not have")
    completed = _with_hooks(completed, found, layers, source)
    checked = validate_config(completed, source)
    _require_kind(checked, found, source)
    _require_known_hooks(completed, source)
    layers = [
        _with_input_shift(with_activation(layer, checked.activation, _k(checked)), checked.input_shift)
        for layer in layers
    ]
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
        return CrossLayerTranscoder.from_weights(layers, **hooks, **place), completed
    singles = {
        number: SingleLayerTranscoder.from_weights(layer, number, **place)
        for number, layer in zip(numbers, layers, strict=True)
    }
    built = TranscoderSet(singles, **hooks)
    built.input_shift_unknown = any(layer.input_shift_unknown for layer in layers)
    return built, completed


def _require_known_hooks(config: Mapping[str, Any], source: str) -> None:
    """InputError unless the hooks are those of transcoders, or one place where autoencoders may stand."""
    if config[HOOKS[0]] == config[HOOKS[1]] and config[HOOKS[0]] in AUTOENCODED:
        return
    for key, known in zip(HOOKS, (READABLE, WRITABLE), strict=True):
        if config[key] not in known:
            raise InputError(
                f"{key} {shortened(config[key])} of {source} is unknown; known are {', '.join(sorted(known))}, and for "
                f"autoencoders, at one place, {', '.join(AUTOENCODED)}."
            )


def build_layer(
    config: Mapping[str, Any],
    file: TensorFile,
    layer: int,
    source: str,
    device: Device,
    dtype: torch.dtype | None,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> SingleLayerTranscoder:
    """The transcoder of one layer, with the same checks as `build`; where it stands may be unknown."""
    found, layers = read_layers([file])
    if len(layers) != 1:
        raise FileFormatError(
            f"{file.path} holds {len(layers)} layers; load its folder as a whole (load_transcoder_from_hub)."
        )
    weights = layers[0]
    usual = found.hooks[0] if found.hooks is not None and found.hooks[0] == found.hooks[1] else None
    if weights.reads == weights.writes and (place := usual if weights.reads is None else weights.reads.said):
        raise FileFormatError(f"{file.path} is a sparse autoencoder at {place}: {NO_TRANSCODER}")
    require_layer(weights, layer)
    checked = validate_config(_completed(config, found, [weights], source), source)
    _require_kind(checked, found, source)
    weights = _with_input_shift(weights, checked.input_shift)
    if weights.input_shift_unknown:
        raise InputError(
            f"{file.path} does not say whether the transcoder subtracts b_dec from its input. Write input_shift: true or false "
            "into a config.yaml beside it, or load the whole set with its model, which measures it."
        )
    return SingleLayerTranscoder.from_weights(
        with_activation(weights, checked.activation, _k(checked)), layer,
        device=device, dtype=dtype, lazy_encoder=lazy_encoder, lazy_decoder=lazy_decoder,
    )  # fmt: skip


def with_arguments(config: Mapping[str, Any], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The config with a caller's arguments (those that are not None); FileFormatError where both say different things."""
    wanted = {key: value for key, value in given.items() if value is not None}
    for key, value in wanted.items():
        if config.get(key) not in (None, value):
            raise FileFormatError(
                f"{source} says {key} = {shortened(config[key])}, the argument says {value!r}. Leave the argument out, or "
                f"correct {source}."
            )
    return {**config, **wanted}


def with_activation(weights: LayerWeights, activation: str | None, k: int | None) -> LayerWeights:
    """Weights with the activation that a config names; FileFormatError if the file says otherwise, or k is unknown."""
    stored = weights.activation_name
    if activation is None:
        if k is not None and k != weights.k:
            raise FileFormatError(
                f"{weights.source}: the config says k = {k}, but not that the activation is topk, and the file "
                f"{'has none' if weights.k is None else f'says k = {weights.k}'}. Add activation: topk, or remove k."
            )
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


def _with_input_shift(weights: LayerWeights, shifted: bool | None) -> LayerWeights:
    """Weights of which it is decided whether the decoder bias is subtracted from the input; as they are if nobody says."""
    if shifted is None:
        return weights
    if not weights.input_shift_unknown:
        raise FileFormatError(
            f"{weights.source}: input_shift = {shifted} is said, but only of EleutherAI transcoders whose cfg.json has no "
            "`transcode` it is unknown. Leave it out."
        )
    bias = weights.encoder_bias
    if shifted:
        bias = shifted_bias(weights.encoder, bias, weights.decoder_bias)
    return replace(weights, encoder_bias=bias, input_shift_unknown=False)


def _numbers(files: LayerFiles, weights: list[LayerWeights], found: Format) -> list[int]:
    """The model's layers that weights are of: as names of files say, or, of a single file without a number, what lies in it."""
    if len(weights) != len(files.files):  # all layers in one file, or the last one given twice
        return list(range(len(weights)))
    first = files.files[0]
    if files.layers is None and found.kind == TranscoderSet.kind:
        said = next(iter(_layers_said(weights[0])), None)
        if said is None:
            raise FileFormatError(
                f"{first.path}: neither its name nor what lies beside it says which layer it belongs to. Name the file or its "
                "folder by the layer (layer_0, layer_1, ...), or list the files in order in a config.yaml under `transcoders`."
            )
        return [said]
    alone = files.layers is None or (found.kind == CrossLayerTranscoder.kind and len(files.files) == 1)
    numbers = [0] if alone else list(files.layers or [])
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if missing and found.kind == CrossLayerTranscoder.kind:
        raise FileFormatError(
            f"{first.path.parent}: found layers {numbers}, missing {missing}. A cross-layer transcoder needs every layer."
        )
    return numbers


def _completed(config: Mapping[str, Any], found: Format, layers: list[LayerWeights], source: str) -> dict[str, Any]:
    """The config with the kind and hooks that the files say; FileFormatError where both say different things."""
    completed = dict(config)
    if completed.get("model_kind") is None:
        completed["model_kind"] = found.kind
    names = {layer.model_name for layer in layers}
    if completed.get("model_name") is None and len(names) == 1 and None not in names:
        completed["model_name"] = names.pop()
    said = [
        _one_hook(
            [(layer.source, place) for layer in layers if (place := getattr(layer, side)) is not None],
            {*allowed, *(AUTOENCODED if layers[0].reads == layers[0].writes else ())},
        )
        for side, allowed in (("reads", READABLE), ("writes", WRITABLE))
    ]
    for key, hook, unknown in zip(HOOKS, said, (layers[0].reads, layers[0].writes), strict=True):
        if hook is None:
            if unknown is not None and completed.get(key) is not None:
                warn(
                    f"{layers[0].source} says {unknown.said}, a place that is not known here; {key} = {completed[key]} is "
                    f"taken from {source}. See that they are one place."
                )
        elif completed.get(key) is None:
            completed[key] = hook
        elif completed[key] != hook:
            raise FileFormatError(
                f"{source} says {key} = {shortened(completed[key])}, but {layers[0].source} says {hook!r}. Correct one of them."
            )
    return completed


def _with_hooks(completed: dict[str, Any], found: Format, layers: list[LayerWeights], source: str) -> dict[str, Any]:
    """The config with hooks that nobody says: assumed, with a warning, if the format has usual ones; InputError if not."""
    missing = [key for key in HOOKS if completed.get(key) is None]
    if missing and found.hooks is not None:
        assumed = {key: hook for key, hook in zip(HOOKS, found.hooks, strict=True) if key in missing}
        completed |= assumed
        warn(
            f"{layers[0].source}: nothing says where these {found.name} files read and write. Assumed is "
            f"{', '.join(f'{key} = {hook}' for key, hook in assumed.items())}: "
            f"{found.hooks_note}. Give both hooks, or write them "
            "into a config.yaml."
        )
    elif missing:
        strange = [
            place.said for place in (layers[0].reads, layers[0].writes) if place is not None and place.hook is None
        ]
        raise InputError(
            f"{source} and the files do not say where these transcoders read and write"
            f"{f' in known words ({strange[0]})' if strange else ''}. Give {' and '.join(missing)}, or write them into a "
            f"config.yaml. Known are {', '.join(sorted(READABLE))} to read, {', '.join(sorted(WRITABLE))} to write."
        )
    return completed


def _one_hook(said: list[tuple[str, Place]], allowed: set[str]) -> str | None:
    """Our name of the place that the layers name, None if they name none or an unknown one."""
    if not said:
        return None
    first_source, first = said[0]
    for source, place in said[1:]:
        if place.hook != first.hook:
            raise FileFormatError(
                f"layers disagree on their places: {first_source} says {first.said}, {source} says {place.said}. All layers "
                "of one transcoder must agree."
            )
    return first.hook if first.hook in allowed else None


def require_layer(weights: LayerWeights, layer: int) -> None:
    """Raise FileFormatError if a file says that it belongs to another layer than the one it stands at."""
    for said in _layers_said(weights):
        if said != layer:
            raise FileFormatError(
                f"{weights.source} stands at layer {layer}, but says that it belongs to layer {said}. Check the order of the "
                "files."
            )


def _layers_said(layer: LayerWeights) -> Iterable[int]:
    places = (place.layer for place in (layer.reads, layer.writes) if place is not None)
    return (said for said in (layer.layer, *places) if said is not None)


def _k(config: TranscoderConfig) -> int | None:
    return config.k or (_KNOWN_K.get(config.repo_id or "") if config.activation == "topk" else None)


def _require_kind(config: TranscoderConfig, found: Format, source: str) -> None:
    if config.model_kind != found.kind:
        raise FileFormatError(
            f"{source} says model_kind {config.model_kind}, but the files are {found.name}, a {found.kind}. "
            "Correct the config or point to other files."
        )
    special = config.special_load_fn
    if special is not None and found not in _SPECIAL[special]:
        raise FileFormatError(
            f"{source} says special_load_fn {special}, but the files are {found.name}. Correct the config or point to other "
            "files."
        )
