"""The places of a model: one table of what can be read and written while it runs (`models/run.py`).

A row says at which module of a layer a place is, on which side, and which norm lies between it and the residual stream.
Names are those of dictionaries' files; the short form without `hook_` is understood too. To add a place, add a row. In models
that multiply what attention and MLP give on its way to the stream (Granite), hook_attn_out and hook_mlp_out are before that.

Letters: B sequences, P positions, D d_model, H heads, K key/value heads, d d_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from torch import nn

from circuit_tracer.errors import CompatibilityError, InputError, shortened
from circuit_tracer.models.parts import LayerParts, ModelParts, Norm


class Side(Enum):
    """Where at a module a place is."""

    INPUT = "what enters the module"
    OUTPUT = "what the module gives"
    NORMALISED = "what the module, a norm, makes of its input before its gain"
    ATTENTION = "within the attention function (models/attention.py)"


@dataclass(frozen=True)
class Site:
    """A place that every layer has.

    Attributes:
        modules: Names in `LayerParts`, or paths below a layer; the first that is there counts.
        norm: The norm between the residual stream and this place, if any.
        dictionary: Whether transcoders may read or write here.
        autoencoders: Whether they may stand here, which read and write at one place.
        refusal: What is said of an architecture without any of the modules, after its name.
    """

    name: str
    what: str
    shape: str
    side: Side
    modules: tuple[str, ...] = ()
    norm: str | None = None
    dictionary: Literal["reads", "writes"] | None = None
    autoencoders: bool = False
    refusal: str = "has no such place"

    def module(self, layer: LayerParts) -> nn.Module | None:
        """The module of a layer that this place belongs to; None where the architecture has none."""
        found = (_at(layer, name) for name in self.modules)
        return next((module for module in found if module is not None), None)

    def missing(self, parts: ModelParts) -> str | None:
        """Why a model has no such place, or None."""
        if self.side is Side.ATTENTION or self.module(parts.layers[0]) is not None:
            return None
        return f"{parts.architecture.model_type} {self.refusal}"


def _at(layer: LayerParts, name: str) -> nn.Module | None:
    if name in LayerParts.__dataclass_fields__:
        part: nn.Module | Norm | None = getattr(layer, name)
        return part.module if isinstance(part, Norm) else part
    try:
        return layer.module.get_submodule(name)
    except AttributeError:
        return None


_BEFORE_MLP = "has no norm before its MLP; use a transcoder trained on hook_resid_mid or mlp.hook_in"
_BEFORE_ATTENTION = "has no norm before its attention; read hook_resid_pre instead"
_IN, _OUT, _NORMALISED, _ATTENTION = Side.INPUT, Side.OUTPUT, Side.NORMALISED, Side.ATTENTION
_READS: Literal["reads"] = "reads"
_WRITES: Literal["writes"] = "writes"

# name, what, shape, side, modules, the norm between it and the stream, what transcoders do here, whether autoencoders stand
# here, refusal; in order of a layer
_ROWS = (
    Site("hook_resid_pre", "residual stream that enters a layer", "B P D", _IN, ("module",), autoencoders=True),
    Site("ln1.hook_normalized", "it, normalised for attention, before the gain", "B P D", _NORMALISED, ("attention_norm",),
         "attention_norm", refusal=_BEFORE_ATTENTION),
    Site("attn.hook_q", "queries after rotary embedding and norms", "B H P d", _ATTENTION),
    Site("attn.hook_k", "keys after rotary embedding and norms", "B K P d", _ATTENTION),
    Site("attn.hook_v", "values", "B K P d", _ATTENTION),
    Site("attn.hook_scores", "what the softmax is taken of: scaled, capped, masked", "B H P P", _ATTENTION),
    Site("attn.hook_pattern", "attention patterns, rows = queries", "B H P P", _ATTENTION),
    Site("attn.hook_z", "outputs of the heads, side by side, before their projection", "B P H*d", _IN, ("output",),
         autoencoders=True),
    Site("attn.hook_out", "what attention gives, before a norm behind it", "B P D", _OUT, ("attention_output",),
         "attention_post_norm", autoencoders=True),
    Site("hook_attn_out", "what attention adds to the stream", "B P D", _OUT, ("attention_post_norm", "attention_output"),
         autoencoders=True),
    Site("hook_resid_mid", "residual stream that the MLP, or its norm, reads", "B P D", _IN, ("mlp_norm", "mlp"), None, _READS,
         autoencoders=True),
    Site("ln2.hook_normalized", "it, normalised for the MLP, before the gain", "B P D", _NORMALISED, ("mlp_norm",),
         "mlp_norm", _READS, refusal=_BEFORE_MLP),
    Site("mlp.hook_in", "what enters the MLP", "B P D", _IN, ("mlp",), "mlp_norm", _READS),
    Site("hook_mlp_out", "what the MLP adds to the stream", "B P D", _OUT, ("mlp_post_norm", "mlp_output"), None, _WRITES,
         autoencoders=True),
    Site("mlp.hook_out", "what the MLP gives, before a norm behind it", "B P D", _OUT, ("mlp_output",), "mlp_post_norm",
         _WRITES, autoencoders=True),
    Site("hook_resid_post", "residual stream behind a layer", "B P D", _OUT, ("module",), autoencoders=True),
)  # fmt: skip
SITES = {site.name: site for site in _ROWS}
INPUT_HOOKS = tuple(site.name for site in SITES.values() if site.dictionary == "reads")
OUTPUT_HOOKS = tuple(site.name for site in SITES.values() if site.dictionary == "writes")
AUTOENCODED = tuple(site.name for site in SITES.values() if site.autoencoders)


def site_named(name: str) -> Site:
    """A row of the table, by its name or the short form of it (`resid_pre`, `attn.z`).

    Args:
        name: Its name, or the short form of it.

    Returns:
        The row of the table.

    Raises:
        InputError: For a name that no row has.

    Examples:
        >>> from circuit_tracer.models.sites import site_named
        >>> site_named("resid_pre").what
        'residual stream that enters a layer'
    """
    if not isinstance(name, str):
        raise InputError(f"site is {shortened(name)}; known are {', '.join(SITES)}")
    first, _, last = name.rpartition(".")
    for known in (name, f"{first}.hook_{last}" if first else f"hook_{last}"):
        if known in SITES:
            return SITES[known]
    raise InputError(f"site {name!r} is unknown; known are {', '.join(SITES)}")


def site_of(parts: ModelParts, name: str) -> Site:
    """The same, of a model that has it; CompatibilityError says why it has not."""
    site = site_named(name)
    if reason := site.missing(parts):
        raise CompatibilityError(f"there is no {site.name!r} in this model: {reason}")
    return site


def width_at(parts: ModelParts, name: str) -> int:
    """Numbers of an activation at a place where dictionaries may stand: d_model, or of all heads side by side."""
    if name != "attn.hook_z":
        return parts.config.d_model
    return int(parts.layers[0].output_weight.shape[1])


def check_hooks(parts: ModelParts, input_hook: str, output_hook: str) -> None:
    """Refuse names of a dictionary's two places that do not exist, or not in this architecture; autoencoders have one."""
    if input_hook == output_hook:
        if input_hook not in AUTOENCODED:
            raise CompatibilityError(
                f"autoencoder at {input_hook!r}, which is unknown; known are {', '.join(AUTOENCODED)}"
            )
        if reason := SITES[input_hook].missing(parts):
            raise CompatibilityError(f"autoencoder at {input_hook!r}, but {reason}")
        return
    for hook, known, role in ((input_hook, INPUT_HOOKS, "input"), (output_hook, OUTPUT_HOOKS, "output")):
        if hook not in known:
            raise CompatibilityError(f"transcoder {role} hook {hook!r} is unknown; known are {', '.join(known)}")
        if reason := SITES[hook].missing(parts):
            raise CompatibilityError(f"transcoder {'reads' if role == 'input' else 'writes'} {hook!r}, but {reason}")
