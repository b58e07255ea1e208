"""One way to run a model: read and write any of its places, hold what must stay still, and leave it as it was found.

    seen = read(parts, ids, [("hook_resid_mid", 3), ("attn.hook_pattern", 3)])
    final = ModelRun(parts, {"hook_mlp_out": lambda layer, y_BPD: 2 * y_BPD})(ids).final
    with ModelRun(parts, visits).active(): ...       # passes that somebody else makes

A *visit* is called with (layer, activation) whenever a pass comes by its place; what it returns, unless None, replaces the
activation. Places are rows of `models/sites.py`. All hooks of this package are made here. A run is of the context that makes
it: passes that other threads make meanwhile, of the bare model too, run as if they were alone (`models/whose.py`,
`models/watched.py`), and afterwards nothing is left on the model.

Letters: B sequences, P positions, D d_model, n = B * P rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.kernels.device import sent
from circuit_tracer.models import attention
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.attention_hooks import at_attention, own_implementation, require_site
from circuit_tracer.models.call import Call
from circuit_tracer.models.parts import LayerParts, ModelParts, Norm
from circuit_tracer.models.rotary import answer_alone, depends_on_length
from circuit_tracer.models.sites import Side, site_of
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.watched import Hook, When, is_compiled, watched
from circuit_tracer.models.whose import Holder, held_by

Place = tuple[str, int]  # name of a site, layer
Visit = Callable[[int, Tensor], Tensor | None]
FINAL_NORM = "final_norm"


class ScaledNorm(Protocol):
    """A norm whose scale is known for every row (models/norms.py: `FrozenNorm`)."""

    def normalise(self, x: Tensor) -> Tensor:
        """x (n, D), centred if the norm centres, over sigma."""

    def amplify(self, normalised: Tensor) -> Tensor:
        """Gain and shift."""


# (layer, name of the norm in LayerParts, norm, its input (n, D) in the compute dtype); the final norm is behind the last layer
NormRule = Callable[[int, str, Norm, Tensor], ScaledNorm]


def live_scales(layer: int, name: str, norm: Norm, x_nD: Tensor) -> ScaledNorm:
    """The rule of a pass in which norms react: each has the scale of its own input, by our formula in the compute dtype."""
    return norm.parameters.freeze(norm.parameters.inverse_sigma(x_nD))


class Stop(Exception):
    """Raised by a visit: all that is wanted has been seen, the rest of the model need not run."""


class Output(NamedTuple):
    """What a run gives.

    Attributes:
        final: The final norm's output (B, P, D) in the compute dtype.
        past: The key-value cache, if it was asked for.
    """

    final: Tensor
    past: Any


class ModelRun:
    """How to run a model; making one touches nothing.

    Norms of queries and keys compute in the compute dtype where `norms` rules the others, and always react.

    Activations are handed over as the model computes them, (B, P, ...) in its dtype; those behind a norm that `norms` rules
    are in the compute dtype.

    Args:
        parts: The model's parts (`model.parts`).
        visits: By site, for all layers, or by (site, layer).
        norms: How norms are computed; None leaves them to the model, whose own code rounds them to float32 or less.
        tape: What attention records or replays.
        own_attention: False runs whatever attention implementation the model is set to, unless a place within attention is
            visited.
        attends: By layer, what is told all that its attention module is called with.

    Raises:
        CompatibilityError: For a site that the architecture has not.
        InputError: For a name or a layer that does not exist.
    """

    def __init__(
        self,
        parts: ModelParts,
        visits: Mapping[str, Visit] | Mapping[Place, Visit] | None = None,
        *,
        norms: NormRule | None = live_scales,
        tape: AttentionTape | None = None,
        own_attention: bool = True,
        attends: Mapping[int, Callable[[Call], None]] | None = None,
    ) -> None:
        self.parts, self.norms, self.tape, self.own_attention = parts, norms, tape, own_attention
        self.attends = attends or {}
        self._gated = frozenset(index for index, layer in enumerate(parts.layers) if layer.gated)
        self._visits: dict[int, dict[str, Visit]] = {}  # by layer and site
        for key, visit in (visits or {}).items():
            name, layers = (key, range(len(parts.layers))) if isinstance(key, str) else (key[0], [key[1]])
            site = site_of(parts, name)
            for layer in layers:
                if not 0 <= layer < len(parts.layers):
                    raise InputError(f"{site.name} of layer {layer}: the model has layers 0 to {len(parts.layers) - 1}")
                require_site(parts, site, layer)
                self._visits.setdefault(layer, {})[site.name] = visit

    def __call__(
        self, ids: Tensor, *, copies: int = 1, past: Any = None, keep_past: bool = False, gradients: bool = False
    ) -> Output:
        """One pass over ids (B, P), or over `copies` of ids (P,). gradients: make a graph for autograd.

        A visit may raise `Stop`; then there is no output, and `final` is empty.
        """
        rows = sent(ids if ids.ndim == 2 else ids[None].expand(copies, -1), self.parts.device)
        with self.active(), torch.set_grad_enabled(gradients):
            try:
                output = self.parts.base(input_ids=rows, past_key_values=past, use_cache=keep_past or past is not None)
            except Stop:
                return Output(torch.empty(0), None)
        return Output(output.last_hidden_state.to(self.parts.compute_dtype), output.past_key_values)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block, every pass that this context makes of the model is such a run."""
        tape = self._tape()
        own = self.own_attention or (tape is not None and bool(tape.visits))
        holder = _holder(self.parts, own_implementation(self.parts) if own else None, tape)
        hooks = [Hook(holder, module, when, _in_evaluation(module, call)) for module, when, call in self._hooks(tape)]
        hooks += [
            Hook(None, module, When.INSTEAD, partial(answer_alone, module))
            for module in depends_on_length(self.parts.base)
        ]
        with plain_torch(), held_by(holder), watched(hooks):
            yield
            _require_runnable(self.parts)  # still

    def _hooks(self, tape: AttentionTape | None) -> Iterator[_At]:
        if self.norms is not None:
            yield self._at_norm(len(self.parts.layers), FINAL_NORM, self.parts.final_norm, None, [])
        for index, layer in enumerate(self.parts.layers):
            if index in self.attends:
                yield layer.attention, When.BEFORE, _told(self.attends[index])
            if self.norms is not None:
                ruled = None if layer.value_norm is None else layer.value_norm.module
                yield from (_at_head_norm(norm) for norm in layer.head_norms.values() if norm.module is not ruled)
            if tape is not None:
                yield from at_attention(index, layer, self.parts.architecture.own_softmax, tape)
            yield from self._at_layer(index, layer, self._visits.get(index, {}))

    def _tape(self) -> AttentionTape | None:
        within = {
            (name, layer): visit
            for layer, visits in self._visits.items()
            for name, visit in visits.items()
            if site_of(self.parts, name).side is Side.ATTENTION
        }
        tape = self.tape
        if tape is not None and self._gated and (tape.keep or tape.replay):
            tape = replace(tape, gated=self._gated, ungated={})
        return tape if not within else (tape or AttentionTape(keep=False)).visited(within)

    def _at_layer(self, index: int, layer: LayerParts, visits: dict[str, Visit]) -> Iterator[_At]:
        """Hooks of one layer, norms first: what is visited at a norm's output is what the rule made of it."""
        behind: dict[str, Tensor] = {}  # outputs of norms in the compute dtype, where a place behind one is visited
        sites = {name: site_of(self.parts, name) for name in visits}
        normalised = {site.norm: visits[name] for name, site in sites.items() if site.side is Side.NORMALISED}
        wanted = {site.norm for site in sites.values() if site.side is Side.INPUT and self.norms is not None}
        shape: list[int] = []  # (B, P) of the pass, where the model lays all positions in one row
        if visits and self.parts.architecture.flat_mlp:
            yield layer.module, When.BEFORE, partial(_note_shape, shape)
        for name, norm in layer.norms().items():
            if self.norms is not None or name in normalised:
                yield self._at_norm(index, name, norm, normalised.get(name), shape, behind if name in wanted else None)
        for name, site in sites.items():
            module = site.module(layer)
            if module is None or site.side in (Side.NORMALISED, Side.ATTENTION):
                continue
            if site.side is Side.INPUT:
                yield _on_input(module, index, visits[name], shape, behind if site.norm in wanted else None, site.norm)
            else:
                yield _on_output(module, index, visits[name], shape, copied=self.parts.parallel)

    def _at_norm(
        self,
        index: int,
        name: str,
        norm: Norm,
        visit: Visit | None,
        shape: list[int],
        behind: dict[str, Tensor] | None = None,
    ) -> _At:
        """A norm computes by the rule; without one, only its normalised input is visited."""
        rule, dtype = self.norms or live_scales, norm.parameters.gain.dtype

        def hook(args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            x, new = args[0].reshape(-1, args[0].shape[-1]).to(dtype), None
            scaled = rule(index, name, norm, x)
            normalised = scaled.normalise(x)
            if visit is not None:
                given = normalised if self.norms is not None else normalised.to(output.dtype)
                new = visit(index, _by_sequence(given.reshape(output.shape), shape))
                normalised = normalised if new is None else new.reshape(x.shape).to(dtype)
            if new is None and self.norms is None:
                return None
            made = scaled.amplify(normalised)
            if behind is not None:
                behind[name] = made.reshape(output.shape)
            return made.to(output.dtype).reshape(output.shape)

        return norm.module, When.AFTER, hook


def read(
    parts: ModelParts,
    ids: Tensor,
    places: Iterable[Place],
    *,
    norms: NormRule | None = live_scales,
    own_attention: bool = True,
) -> dict[Place, Tensor]:
    """Activations (B, P, ...) at places of a pass over ids (B, P) or (P,), as the model computed them, not copied; the model
    stops behind the last one.

    Args:
        parts: Of the model (`model.parts`).
        ids: (B, P) or (P,).
        places: (site, layer) each.
        norms: How norms are computed; None: as the model does.
        own_attention: False: whatever attention implementation the model is set to.

    Returns:
        Activations by place.

    Examples:
        >>> from circuit_tracer.models.run import read
        >>> seen = read(model.parts, model.ensure_tokenized(PROMPT), [("attn.hook_pattern", 3)])
        >>> seen["attn.hook_pattern", 3].shape
        torch.Size([1, 2, 9, 9])
    """
    found: dict[Place, Tensor] = {}
    wanted = set(places)

    def keep(place: Place) -> Visit:
        def visit(layer: int, activation: Tensor) -> None:
            found[place] = activation
            if len(found) == len(wanted):
                raise Stop

        return visit

    if wanted:
        ModelRun(parts, {place: keep(place) for place in wanted}, norms=norms, own_attention=own_attention)(ids)
    return found


def in_rows(parts: ModelParts, visit: Visit) -> Visit:
    """A visit that takes and gives rows (n, D) in the compute dtype, the sequences of a pass one after the other."""

    def visit_rows(layer: int, activation: Tensor) -> Tensor | None:
        return visit(layer, activation.flatten(0, -2).to(parts.compute_dtype))

    return visit_rows


def in_turn(first: Visit | None, second: Visit) -> Visit:
    """A visit that is both, the second of what the first has made."""

    def visit(layer: int, activation: Tensor) -> Tensor | None:
        new = None if first is None else first(layer, activation)
        newer = second(layer, activation if new is None else new)
        return new if newer is None else newer

    return visit


def implementation(parts: ModelParts, name: str) -> AbstractContextManager[None]:
    """Inside the block, passes that this context makes have this attention implementation."""
    return held_by(_holder(parts, name))


def fast_attention(parts: ModelParts) -> AbstractContextManager[None]:
    """The same with torch's fused attention where that is exact, else this package's (softcap, sinks)."""
    name = own_implementation(parts)
    if not getattr(parts.model.config, "attn_logit_softcapping", None):
        with suppress(ValueError):  # transformers' word for: not with this architecture
            name = parts.model.get_correct_attn_implementation("sdpa")
    return implementation(parts, name)


def _holder(parts: ModelParts, name: str | None, tape: AttentionTape | None = None) -> Holder:
    """What a run's own passes find: this attention (None: the model's own), and experts that exist in its dtype."""
    _require_runnable(parts)
    values = {} if name is None else {"_attn_implementation": name}
    if name == attention.NAME:
        attention.register()
    if parts.compute_dtype is torch.float64:
        values["_experts_implementation"] = "eager"  # grouped products of experts exist in float32 and below only
    return Holder(parts.model, values, tape)


def _require_runnable(parts: ModelParts) -> None:
    """Refuse a model in training mode, in which passes differ by chance (dropout, noise of routers), and one whose parts
    torch.compile has taken: it calls what it has compiled, hooks or no hooks.
    """
    for module in parts.base.modules():
        if module.training:
            raise UnsupportedModelError(_TRAINING)
        if is_compiled(module) or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            name = next(name for name, each in parts.base.named_modules() if each is module)
            raise UnsupportedModelError(
                f"{name or 'the base model'} of {parts.config.model_name} is compiled (torch.compile), so its inside can be "
                "neither read nor changed. Give the model as it was before, and leave it so until the run is over; to compile "
                "it for your own passes, compile the whole: torch.compile(model.hf_model)"
            )


_TRAINING = (
    "the model is in training mode, in which passes differ by chance (dropout). Call model.eval() before it is run here, and "
    "leave it so until the run is over, in other threads too."
)
_At = tuple[nn.Module, When, Callable[..., Any]]


def _in_evaluation(module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """A hook's call, refused once the module is in training mode, which it may have been set to since the run began."""

    def checked(*given: Any) -> Any:
        if module.training:
            raise UnsupportedModelError(_TRAINING)
        return call(*given)

    return checked


def _note_shape(shape: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Of what enters a layer."""
    shape[:] = Call(args, kwargs).hidden.shape[:2]


def _by_sequence(activation: Tensor, shape: list[int]) -> Tensor:
    """(B, P, ...), of whatever the model has laid in a row."""
    return activation.unflatten(0, shape) if shape and activation.ndim == 2 else activation


def _on_input(
    module: nn.Module,
    index: int,
    visit: Visit,
    shape: list[int],
    behind: dict[str, Tensor] | None = None,
    norm: str | None = None,
) -> _At:
    """Visit what enters a module; where a ruled norm gave it, in that norm's precision."""

    def hook(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = Call(args, kwargs).hidden
        exact = behind.pop(norm, None) if behind is not None and norm is not None else None
        new = visit(index, _by_sequence(given if exact is None else exact, shape))
        if new is None:
            return None
        return Call(args, kwargs).on(new.to(given.dtype).reshape(given.shape))

    return module, When.BEFORE, hook


def _told(listener: Callable[[Call], None]) -> Callable[..., None]:
    """Tell what a module is called with."""

    def hook(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        listener(Call(args, kwargs))

    return hook


def _at_head_norm(norm: Norm) -> _At:
    """A norm of queries or keys, of whatever shape, in the compute dtype; its own code rounds to float32 or less."""
    parameters = norm.parameters

    def hook(args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0].to(parameters.gain.dtype)
        return parameters.freeze(parameters.inverse_sigma(x)).forward(x).to(output.dtype)

    return norm.module, When.AFTER, hook


def _on_output(module: nn.Module, index: int, visit: Visit, shape: list[int], copied: bool) -> _At:
    """Visit what a module gives; experts give (n, D), which becomes (B, P, D). copied: the model goes on with a copy, where it
    may add to it in place (Falcon).
    """

    def hook(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        first: Tensor = output[0] if isinstance(output, tuple) else output
        rows = _by_sequence(first, shape)
        new = visit(index, rows if rows.ndim == 3 else rows.reshape(Call(args, kwargs).hidden.shape))
        if new is None and copied:
            new = first.clone()
        if new is None:
            return None
        new = new.to(first.dtype).reshape(first.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return module, When.AFTER, hook
