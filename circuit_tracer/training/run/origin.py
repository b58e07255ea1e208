"""The dictionary that a new run starts from: a checkpoint, or files of any layout that tracers read (training/README.md §11).

Both are brought into the model's own space, as an export has it (§9), and from there into the new run's space of training:
its means and scales are those of the model that it trains on.

Letters: S source layers, F features of a layer (f: owned by this rank), T layers a source writes to, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, FileFormatError, NumericalError
from circuit_tracer.fingerprint import transcoder_fingerprint
from circuit_tracer.models.sites import site_named
from circuit_tracer.models.sources import public_name
from circuit_tracer.training.config.files import FILE_NAME
from circuit_tracer.training.config.schema import DictionarySection, TrainingConfig
from circuit_tracer.training.export.export import FoldedLayer, folded
from circuit_tracer.training.run import checkpoint as checkpoints
from circuit_tracer.training.run.checkpoint import BELONGS, STATE_FILE, Checkpoint
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.relu import ReLU
from circuit_tracer.training.step.dictionary import row_norms
from circuit_tracer.transcoders import Transcoders, load_transcoder_from_hub
from circuit_tracer.transcoders.autoencoders import are_autoencoders, load_autoencoders

# kind of a run -> kinds that it can start from without losing a part of them
TAKES = {"clt": ("clt", "plt"), "plt": ("plt",), "skip": ("plt", "skip"), "sae": ("sae",)}


@dataclass(frozen=True)
class Origin:
    """A dictionary in the model's own space, read layer by layer."""

    name: str  # what was asked for
    place: str  # what that is, for everybody: of a local path the last part
    fingerprint: str
    kind: str
    activation: str
    layers: tuple[int, ...]  # the model's
    features: tuple[int, ...]  # of each of these
    d_model: int
    hooks: tuple[str, str]  # where it reads and writes
    experts: bool  # whether it has a router
    read: Callable[[int, slice], FoldedLayer]  # some features of one of the model's layers; biases and skip whole

    def facts(self) -> dict[str, Any]:
        """For checkpoints and the card."""
        return {"name": self.name, "place": self.place, "fingerprint": self.fingerprint}

    def require_fits(self, config: TrainingConfig, layers: Sequence[int], d_model: int) -> None:
        """Raise CompatibilityError, naming what each side has, unless a run can take it over as it is."""
        wanted, own = config.dictionary, _hooks(config.dictionary)
        problems = []
        if self.kind not in TAKES[wanted.kind]:
            takes = " or ".join(TAKES[wanted.kind])
            problems.append(f"it is a {self.kind}, and dictionary.kind {wanted.kind} starts from {takes}")
        if self.d_model != d_model:
            problems.append(f"its width is {self.d_model}, the model's {d_model}")
        if missing := [layer for layer in layers if layer not in self.layers]:
            problems.append(f"it has no layer {', '.join(map(str, missing))}, only {', '.join(map(str, self.layers))}")
        elif wanted.kind == "clt" and len(self.layers) != len(layers):
            problems.append(f"it has {len(self.layers)} layers, the model {len(layers)}")
        if different := {count for count in self.features if count != wanted.features}:
            problems.append(
                f"its layers have {', '.join(map(str, sorted(different)))} features, dictionary.features is {wanted.features}"
            )
        if tuple(map(_site, self.hooks)) != tuple(map(_site, own)):
            problems.append(f"it reads and writes at {' and '.join(self.hooks)}, the run at {' and '.join(own)}")
        if self.experts:
            problems.append("it is a switch, whose router would be lost")
        its_rule, named = self.activation, config.sparsity.activation
        if isinstance(rule_of(config.sparsity), ReLU) and its_rule != "relu":
            problems.append(
                f"its activation is {its_rule}, whose thresholds a {named} would lose; use jumprelu or batch_topk"
            )
        if problems:
            raise CompatibilityError(
                f"run.start_from {self.name} does not fit: {'; '.join(problems)}. Change these keys, or start from another one."
            )


def open_origin(name: str, settle: Callable[[Transcoders], Transcoders]) -> Origin:
    """The dictionary that ``run.start_from`` names: folder of a run or checkpoint, or folder or hub id of a dictionary.

    Of a run it is the last checkpoint, and what was written at the end if there is none any more.

    settle: makes of a published one what it is on a model (`input_shift.with_known_shift`).
    Raises InputError, FileFormatError or CompatibilityError for what is not there, damaged, or of no known layout.
    """
    path = Path(name).expanduser()
    if (path / STATE_FILE).is_file():
        return _of_checkpoint(name, checkpoints.read(path))
    if (last := checkpoints.latest(path / "checkpoints")) is not None:
        return _of_checkpoint(name, last)
    written = path / "transcoder"
    place = written if (path / FILE_NAME).is_file() and written.is_dir() else name
    if are_autoencoders(place):
        found = load_autoencoders(place, "cpu")
        return _of_files(name, found.dictionary, found.layers)
    transcoders = settle(load_transcoder_from_hub(place, dtype=torch.float32, lazy_encoder=True, lazy_decoder=True)[0])
    return _of_files(name, transcoders, transcoders.layers)


def take_over_(state: TrainingState, origin: Origin, layers: Sequence[int]) -> None:
    """Write the origin's weights into a new state, this rank's rows, through the inverse of the folding (§9).

    ``layers``: the model's layers that the sources are. Decoder blocks to layers that the origin does not write to are zero.
    Raises NumericalError if a weight is not finite.
    """
    dictionary, space = state.dictionary, state.normalisation.to(torch.device("cpu"))
    width = dictionary.d_model
    for source, layer in enumerate(layers):
        one = origin.read(layer, dictionary.owned)
        scale_x, mean_x_D = space.scale_x_S[source].double(), space.mean_x_SD[source].double()
        scale_y, mean_y_D = space.scale_y_S[source].double(), space.mean_y_SD[source].double()
        bias_D = one.decoder_bias_D.double()
        dictionary.W_enc[source].copy_(one.encoder_FD.float() / scale_x.float())
        dictionary.b_enc[source].copy_(one.encoder_bias_F.double() + one.encoder_FD.double() @ mean_x_D)
        _, reach, _ = one.decoder_FTD.shape
        scale_y_T1 = space.scale_y_S[source : source + reach, None]
        dictionary.W_dec[source].zero_()
        dictionary.W_dec[source][:, : reach * width] = (one.decoder_FTD.float() * scale_y_T1).flatten(1)
        dictionary.norms[source].copy_(row_norms(dictionary.W_dec[source]))
        if dictionary.W_skip is not None:
            skip_DD = torch.zeros(width, width).double() if one.skip_DD is None else one.skip_DD.double()
            dictionary.W_skip[source].copy_(skip_DD * (scale_y / scale_x))
            bias_D = bias_D + skip_DD @ mean_x_D
        dictionary.b_dec[source].copy_((bias_D - mean_y_D) * scale_y)
        if dictionary.b_mag is not None:  # a gate where the threshold is, and the magnitude that passed it
            dictionary.b_mag[source].copy_(dictionary.b_enc[source])
            if one.threshold_F is not None:
                dictionary.b_enc[source] -= one.threshold_F.to(dictionary.b_enc[source])
        if dictionary.log_threshold is not None and one.threshold_F is not None:
            _take_thresholds_(dictionary.log_threshold[source], one.threshold_F)
    for name, tensor in dictionary.tensors().items():
        if not torch.isfinite(tensor).all():
            raise NumericalError(
                f"{name}, taken from run.start_from {origin.name}, is not finite: the dictionary is damaged."
            )


def _take_thresholds_(log_threshold_f: Tensor, threshold_f: Tensor) -> None:
    """Those of zero or below have no logarithm: there the run's own start stays."""
    threshold_f = threshold_f.to(log_threshold_f)
    log_threshold_f.copy_(torch.where(threshold_f > 0, threshold_f.log(), log_threshold_f))


def _of_checkpoint(name: str, checkpoint: Checkpoint) -> Origin:
    """A checkpoint, folded in float32. Its thresholds are those calibrated, or what the running cut says."""
    config = _configuration(checkpoint)
    dictionary, n_layers = config.dictionary, checkpoint.content["n_layers"]
    layers = tuple(dictionary.layers or range(n_layers))
    levels, cut = checkpoint.content.get("levels"), checkpoint.content["running_cut"]
    if levels is None and rule_of(config.sparsity).has_budget:
        levels = [cut or 0.0] * n_layers

    def read(layer: int, owned: slice) -> FoldedLayer:
        one = folded(checkpoint, config, levels, layers.index(layer))
        return replace(
            one,
            encoder_FD=one.encoder_FD[owned],
            encoder_bias_F=one.encoder_bias_F[owned],
            decoder_FTD=one.decoder_FTD[owned],
            threshold_F=None if one.threshold_F is None else one.threshold_F[owned],
        )

    return Origin(
        name=name,
        place=f"the run {public_name(name)}, step {checkpoint.step}",
        fingerprint=checkpoint.content[BELONGS],
        kind=dictionary.kind,
        activation=config.sparsity.activation,
        layers=layers,
        features=(checkpoint.content["n_features"],) * n_layers,
        d_model=checkpoints.shared(checkpoint, "b_dec").shape[1],
        hooks=_hooks(dictionary),
        experts=bool(rule_of(config.sparsity).experts),
        read=read,
    )


def _configuration(checkpoint: Checkpoint) -> TrainingConfig:
    """What state.json says the checkpoint was trained with, to be exported in float32."""
    tree: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in checkpoint.fact("config").items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    tree["run"] |= {"out": str(checkpoint.folder), "export_dtype": "float32"}
    try:
        return TrainingConfig.model_validate(tree)
    except ValidationError as error:
        raise FileFormatError(
            f"{checkpoint.folder / STATE_FILE} has a configuration that this program does not read: {error}. Start from the "
            "dictionary that the run wrote, OUT/transcoder."
        ) from error


def _of_files(name: str, transcoders: Transcoders, layers: tuple[int, ...]) -> Origin:
    """A published dictionary of these layers of the model."""
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    numbers = dict(zip(layers, transcoders.layers, strict=True))  # as the dictionary counts
    kinds = {
        ("cross_layer_transcoder", False): "clt",
        ("cross_layer_transcoder", True): "clt with a skip matrix",
        ("transcoder_set", False): "plt",
        ("transcoder_set", True): "skip",
    }

    def read(layer: int, owned: slice) -> FoldedLayer:
        layer = numbers[layer]
        threshold = getattr(transcoders.activation(layer), "threshold", None)
        skip = transcoders.skip_matrix(layer)
        return FoldedLayer(
            transcoders.encoder(layer).block(owned.start, owned.stop),
            transcoders.encoder_bias(layer)[owned],
            transcoders.decoder(layer).block(owned.start, owned.stop),
            transcoders.decoder_bias(layer),
            None if threshold is None else threshold.expand(transcoders.n_features(layer))[owned],
            None if skip is None else skip.T,
        )

    names = {"jump_relu": "jumprelu"}
    activation = transcoders.activation(transcoders.layers[0]).name
    return Origin(
        name=name,
        place=f"the dictionary {public_name(name)}",
        fingerprint=transcoder_fingerprint(transcoders),
        kind="sae" if hooks[0] == hooks[1] else kinds[transcoders.kind, transcoders.skip_connection],
        activation=names.get(activation, activation),
        layers=layers,
        features=tuple(transcoders.n_features(layer) for layer in transcoders.layers),
        d_model=transcoders.d_model,
        hooks=hooks,
        experts=any(transcoders.router(layer) is not None for layer in transcoders.layers),
        read=read,
    )


def _hooks(dictionary: DictionarySection) -> tuple[str, str]:
    """Where a run reads and writes."""
    if dictionary.kind == "sae":
        return dictionary.point, dictionary.point
    return dictionary.input_hook, dictionary.output_hook


def _site(hook: str) -> str:
    """A place by its full name, so that short forms are equal to it."""
    return site_named(hook).name
