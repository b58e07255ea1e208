"""What a run does at attention that the function of `models/attention.py` does not see: gates, linear attention, attention of a
model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from circuit_tracer.errors import CompatibilityError
from circuit_tracer.models import attention
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.call import Call
from circuit_tracer.models.mixing import Held
from circuit_tracer.models.own_attention import OwnSoftmax, require_kept_patterns
from circuit_tracer.models.parts import LayerParts, LinearMixer, ModelParts
from circuit_tracer.models.sites import Side, Site
from circuit_tracer.models.watched import When

_SHOWN_BY_SOFTMAX = ("attn.hook_scores", "attn.hook_pattern")
_SHOWN_BY_LINEAR = ("attn.hook_pattern",)


def require_site(parts: ModelParts, site: Site, layer: int) -> None:
    """Refuse a place within attention that a layer's attention does not show."""
    linear = parts.layers[layer].linear is not None
    if site.side is not Side.ATTENTION or not (linear or parts.architecture.own_softmax):
        return
    shown = _SHOWN_BY_LINEAR if linear else _SHOWN_BY_SOFTMAX
    if site.name not in shown:
        kind = type(parts.layers[layer].attention).__name__
        raise CompatibilityError(
            f"there is no {site.name!r} in layer {layer} of this model: its {kind} shows only {' and '.join(shown)}"
        )


def own_implementation(parts: ModelParts) -> str:
    """The attention implementation with which this package sees patterns."""
    return "eager" if parts.architecture.own_softmax else attention.NAME


def at_attention(
    index: int, layer: LayerParts, own_softmax: bool, tape: AttentionTape
) -> Iterator[tuple[nn.Module, When, Callable[..., Any]]]:
    """Hooks of one layer that record and replay."""
    module, linear = layer.attention, layer.linear

    def softmax(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with OwnSoftmax(tape, index):
            return module.forward(*args, **kwargs)

    def gate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        call = Call(args, kwargs)
        return call.on(tape.gate(index, call.hidden)) if index in tape.ungated else None

    if linear is not None:
        yield module, When.INSTEAD, partial(_run_linear, tape, index, linear)
    elif own_softmax:
        yield module, When.INSTEAD, softmax
    if index in tape.gated:
        yield layer.output, When.BEFORE, gate


def _run_linear(
    tape: AttentionTape, layer: int, linear: LinearMixer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """What the module gives; its pattern and scales are recorded, or replayed."""
    require_kept_patterns(tape)
    held = Held(tape.patterns[layer], tape.scales[layer]) if tape.replay else None
    given, made = linear.run(Call(args, kwargs).hidden, held, partial(tape.visit, "pattern", layer))
    if tape.keep and not tape.replay:
        tape.patterns[layer] = (made.pattern if tape.several else made.pattern[0]).detach()
        tape.scales[layer] = made.scales.each(tape.kept)
    return given
