"""What a row of the table of architectures says, and how a path in it is followed.

The table is in `models/architectures.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from torch import nn

from circuit_tracer.errors import UnsupportedModelError


class NormKind(Enum):
    """How a norm scales (attribution/README.md §4.3): what multiplies r/sigma, and whether the mean is removed first.

    A norm without weight or bias has the factor one and no shift.
    """

    RMS = "rms"  # weight
    RMS_PLUS_ONE = "rms_plus_one"  # 1 + weight (Gemma)
    LAYER = "layer"  # centred, weight, bias
    LAYER_PLUS_ONE = "layer_plus_one"  # centred, 1 + weight, bias (Nemotron)


class ValueRows(Enum):
    """Where the value projection sits in the module named by `Architecture.value`."""

    WHOLE = "whole"  # a projection of its own
    TAIL = "tail"  # the last rows of a fused q|k|v (Phi-3, GPT-2)
    INTERLEAVED = "interleaved"  # q|k|v inside each head (GPT-NeoX), or q..q|k|v inside each group of heads (Falcon)
    QUARTERS = "quarters"  # q|v|k inside each of four blocks of heads (CodeGen)
    LATENT = "latent"  # the last rows of each head of `value_up`, which reads a latent that `value` makes (DeepSeek)


@dataclass(frozen=True)
class LinearAttention:
    """Names below a layer of a gated delta net (models/delta_net.py), or of a gated convolution (models/short_conv.py).

    Attributes:
        streams: How its projections lie in memory, and with that what it is.
    """

    module: str
    output: str
    streams: Literal["apart", "by key head", "convolved"]


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one architecture. Paths of `layers`, `final_norm` and `position_embedding` start at the causal-LM
    module; all others start at a layer. A norm that does not exist is None. Of several paths the first that a layer has
    counts.

    Fields that end in `_key` name an attribute of the configuration, so that variants of a family differ by what their
    config.json says.

    Attributes:
        required: Attributes, the value that each must have, and what another one means.
    """

    model_type: str
    norm: NormKind
    norm_epsilon: float | None = None  # where the norms do not say
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    value: str | tuple[str, ...] = "self_attn.v_proj"
    value_rows: ValueRows = ValueRows.WHOLE
    value_norm: str | None = None  # between `value` and `value_up`, or of each head's values
    value_up: str | None = None  # from the latent to values, where there is one
    output: str = "self_attn.o_proj"
    attention_output: str | None = None  # the module that gives what attention gives, where `attention` adds the stream
    gated: bool = False  # what the heads give is multiplied, number by number, before `output` reads it
    own_softmax: bool = False  # attention that does not call transformers' interface (models/own_attention.py)
    linear: LinearAttention | None = None  # in layers that have it instead of `attention`
    mlp: str = "mlp"
    mlp_output: str | None = None  # the module that gives what the MLP gives, where `mlp` only begins it
    attention_norm: str | tuple[str, ...] | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | tuple[str, ...] | None = "post_attention_layernorm"
    mlp_norm_if_parallel: str | None = None  # where that is another norm
    mlp_post_norm: str | None = None
    layer_multiplier: str | None = None  # a number of each layer by which the stream that leaves it is multiplied
    position_embedding: str | None = None
    embedding_norm: str | None = None  # what enters the first layer are rows of the embedding behind it
    flat_mlp: bool = False  # norm and MLP read all positions of all sequences in one row (OPT)
    parallel: bool = False  # attention and MLP read the same residual stream
    parallel_flag: str | None = None  # the attribute that says so
    residual_multiplier_key: str | None = (
        None  # what attention and MLP give is multiplied by it on its way to the stream
    )
    value_multiplier_key: str | None = None  # values are multiplied by it
    logit_multiplier_key: str | None = None
    logit_divisor_key: str | None = None
    required: tuple[tuple[str, Any, str], ...] = ()
    package: str = "transformers.models."  # where classes of the model's modules are defined, besides transformers

    def is_parallel(self, config: Any) -> bool:
        """Whether this model's attention and MLP run side by side on the layer's input."""
        return self.parallel or bool(self.parallel_flag and getattr(config, self.parallel_flag))

    def mlp_norm_of(self, config: Any) -> str | tuple[str, ...] | None:
        """The path of the norm in front of the MLP."""
        return self.mlp_norm_if_parallel if self.mlp_norm_if_parallel and self.is_parallel(config) else self.mlp_norm

    def value_multiplier(self, config: Any) -> float:
        """What multiplies values."""
        found = getattr(config, self.value_multiplier_key) if self.value_multiplier_key else None
        return 1.0 if found is None else float(found)

    def residual_multiplier(self, config: Any) -> float:
        """What multiplies everything that is added to the residual stream."""
        return float(getattr(config, self.residual_multiplier_key)) if self.residual_multiplier_key else 1.0

    def logit_multiplier(self, config: Any) -> float:
        """What multiplies the unembedding's outputs, before a softcap."""
        scale = float(getattr(config, self.logit_multiplier_key)) if self.logit_multiplier_key else 1.0
        return scale / float(getattr(config, self.logit_divisor_key)) if self.logit_divisor_key else scale


def check_required(row: Architecture, config: Any) -> None:
    """Refuse a variant that the row does not describe. Raises UnsupportedModelError."""
    for key, value, meaning in row.required:
        found = _configured(config, key, value)
        if found != value:
            raise UnsupportedModelError(
                f"this {config.model_type} has {key}={found!r} in its configuration ({meaning}); only {value!r} can be traced"
            )


def _configured(config: Any, key: str, default: Any) -> Any:
    """An attribute of a configuration, or of a configuration within it (dotted)."""
    for name in key.split("."):
        config = getattr(config, name, default)
    return config


def path_there(module: nn.Module, paths: str | tuple[str, ...]) -> str:
    """The first of some paths at which a module has a submodule; the last one if there is none."""
    for path in (paths,) if isinstance(paths, str) else paths:
        at = module
        for name in path.split("."):
            at = getattr(at, name, None)  # type: ignore[assignment]
        if isinstance(at, nn.Module):
            break
    return path


def has_part(module: nn.Module, paths: str | tuple[str, ...]) -> bool:
    """Whether a module has a submodule at a dotted path, or at one of several."""
    at: Any = module
    for name in path_there(module, paths).split("."):
        at = getattr(at, name, None)
    return isinstance(at, nn.Module)


def part(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; UnsupportedModelError names the path when it is missing."""
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no part {path!r}, which the table of architectures expects: {error}. "
            "This version of transformers, or this variant of the model, names its parts differently."
        ) from error
