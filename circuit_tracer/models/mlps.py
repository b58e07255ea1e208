"""The neurons of a layer's MLP, and each as a linear function of what the MLP reads on one prompt (attribution/README.md §9).

A neuron is a product of one or two factors f(w·x + b): act(gate) · up in a gated MLP, act(z) in a plain one. Held at a prompt,
a function is its ratio to its argument, f(z) = f(0) + r z with r = (f(z) - f(0)) / z, and a product goes in halves to its
factors:

    A B = ½ (A(0) + r_A z_A) B + ½ A (B(0) + r_B z_B)        read vector  e = ½ (r_A B w_A + A r_B w_B)

so that e·x plus a constant is the neuron's activation, exactly. Experts are neurons too: those of an expert that a token is not
sent to are off, and the router's weights are constant factors.

Letters: n tokens, m those that some neurons get, D d_model, F neurons, E experts, T rows of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.plain import projection

TOKENS_AT_ONCE = 256  # whose activations are made together
CHECKED = 256  # neurons of a layer whose read vectors are checked
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factor:
    """f(w·x + b) of F neurons."""

    weight: Tensor  # (F, D)
    bias: Tensor | None  # (F,)
    function: Function | None = None  # elementwise; None: z itself

    def pre(self, x_mD: Tensor) -> Tensor:
        """z (m, F)."""
        z = x_mD @ self.weight.to(x_mD.dtype).T
        return z if self.bias is None else z + self.bias.to(x_mD.dtype)

    def pre_of(self, x_nD: Tensor, neuron_n: Tensor) -> Tensor:
        """z (n,) of one neuron for each token."""
        z = (x_nD * self.weight[neuron_n].to(x_nD.dtype)).sum(1)
        return z if self.bias is None else z + self.bias[neuron_n].to(x_nD.dtype)

    def held(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f(z), its ratio, and f(0)."""
        if self.function is None:
            return z, torch.ones_like(z), torch.zeros_like(z[..., :1])
        value, zero = self.function(z), self.function(torch.zeros_like(z[..., :1]))
        return value, torch.where(z == 0, torch.zeros_like(z), (value - zero) / z), zero


@dataclass(frozen=True)
class Held:
    """Neurons held at some tokens: their activations, what multiplies the weights of their factors, and the constant rest."""

    value: Tensor
    first: Tensor
    second: Tensor | None
    constant: Tensor

    def times(self, factor: Tensor) -> Held:
        """All of it times a constant."""
        second = None if self.second is None else self.second * factor
        return Held(self.value * factor, self.first * factor, second, self.constant * factor)


@dataclass(frozen=True)
class Units:
    """Neurons that get the same tokens: those of a dense MLP, of one expert, or of a shared one."""

    first: Factor
    second: Factor | None
    write: Tensor  # (F, D) rows that activations write
    write_bias: Tensor | None  # (D,)

    def __len__(self) -> int:
        return int(self.write.shape[0])

    def at(self, x_mD: Tensor) -> Held:
        """All of them, (m, F)."""
        second = None if self.second is None else self.second.pre(x_mD)
        return self._held(self.first.pre(x_mD), second, lambda bias_F: bias_F)

    def some_at(self, x_nD: Tensor, neuron_n: Tensor) -> tuple[Held, Tensor]:
        """One for each token, (n,), and the read vectors (n, D)."""
        second = None if self.second is None else self.second.pre_of(x_nD, neuron_n)[:, None]
        held = self._held(self.first.pre_of(x_nD, neuron_n)[:, None], second, lambda bias_F: bias_F[neuron_n][:, None])
        read = held.first * self.first.weight[neuron_n].to(x_nD.dtype)
        if self.second is not None and held.second is not None:
            read = read + held.second * self.second.weight[neuron_n].to(x_nD.dtype)
        return held, read

    def _held(self, z: Tensor, z_second: Tensor | None, of: Callable[[Tensor], Tensor]) -> Held:
        value, ratio, zero = self.first.held(z)
        bias = None if self.first.bias is None else of(self.first.bias.to(z.dtype))
        constant = zero if bias is None else zero + ratio * bias
        if self.second is None or z_second is None:
            return Held(value, ratio, None, constant.expand_as(z))
        other, other_ratio, other_zero = self.second.held(z_second)
        other_bias = None if self.second.bias is None else of(self.second.bias.to(z.dtype))
        other_constant = other_zero if other_bias is None else other_zero + other_ratio * other_bias
        return Held(
            value * other,
            0.5 * ratio * other,
            0.5 * value * other_ratio,
            0.5 * (constant * other + value * other_constant),
        )


class Share(NamedTuple):
    """The tokens that units get, and what multiplies what they read there (into) and what they give (out); None: one."""

    token: Tensor  # (m,)
    into: Tensor | None = None  # (m,)
    out: Tensor | None = None  # (m,)

    def some(self, which: Tensor) -> Share:
        """Some of them."""
        into, out = (None if each is None else each[which] for each in (self.into, self.out))
        return Share(self.token[which], into, out)


@dataclass(frozen=True)
class Firing:
    """Units with their share, held there. All scales are in `held` but that of `into` (m, 1) on read vectors."""

    units: Units
    start: int  # number of their first neuron
    token: Tensor  # (m,)
    held: Held  # (m, F)
    into: Tensor | None


class Mlp:
    """The neurons of one layer, numbered through: of a dense MLP; or of the experts, then of those that every token gets.

    What it computes is in the dtype of what it is given; weights stay the model's own.
    """

    def __init__(self, units: Sequence[Units], shares: Callable[[Tensor], list[Share]]) -> None:
        self.units, self._shares = list(units), shares
        self.starts = [0, *accumulate(len(each) for each in self.units)]

    @property
    def n_neurons(self) -> int:
        """F."""
        return self.starts[-1]

    def firing(self, x_nD: Tensor, at_once: int = TOKENS_AT_ONCE) -> Iterator[Firing]:
        """What fires at the tokens of a prompt, so many at a time. Who gets which is asked of all of them together."""
        for units, start, share in zip(self.units, self.starts, self._shares(x_nD), strict=False):
            for part in torch.arange(len(share.token), device=x_nD.device).split(at_once):
                token, into, out = share.some(part)
                x_mD = x_nD[token]
                held = units.at(x_mD if into is None else x_mD * into[:, None])
                held = held if out is None else held.times(out[:, None])
                yield Firing(units, start, token, held, None if into is None else into[:, None])

    def activations(self, x_nD: Tensor) -> Tensor:
        """(n, F) of tokens; zero for experts that a token is not sent to."""
        out = x_nD.new_zeros(len(x_nD), self.n_neurons)
        for firing in self.firing(x_nD):
            out[firing.token, firing.start : firing.start + len(firing.units)] = firing.held.value
        return out

    def reads(self, x_nD: Tensor, token_m: Tensor, neuron_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of m neurons, each at one of n tokens: read vectors (m, D), what is added to what they read, activations (m,)."""
        read, (constant, value) = x_nD.new_zeros(len(token_m), x_nD.shape[1]), x_nD.new_zeros(2, len(token_m))
        for units, start, share in zip(self.units, self.starts, self._shares(x_nD), strict=False):
            place = torch.full((len(x_nD),), -1, device=x_nD.device)
            place[share.token] = torch.arange(len(share.token), device=x_nD.device)
            own = (neuron_m >= start) & (neuron_m < start + len(units)) & (place[token_m] >= 0)
            if not bool(own.any()):
                continue
            token, into, out = share.some(place[token_m[own]])
            x_oD = x_nD[token]
            held, vectors = units.some_at(x_oD if into is None else x_oD * into[:, None], neuron_m[own] - start)
            if into is not None:
                vectors = vectors * into[:, None]
            if out is not None:
                held, vectors = held.times(out[:, None]), vectors * out[:, None]
            read[own], constant[own], value[own] = vectors, held.constant[:, 0], held.value[:, 0]
        return read, constant, value

    def write_rows(self, neuron_n: Tensor) -> Tensor:
        """(n, D) of neurons, in the weights' dtype."""
        like = self.units[0].write
        out = like.new_empty(len(neuron_n), like.shape[1])
        for units, start in zip(self.units, self.starts, strict=False):
            number = neuron_n.to(like.device) - start
            own = (number >= 0) & (number < len(units))
            out[own] = units.write[number[own]]
        return out

    def bias(self, x_nD: Tensor) -> Tensor:
        """(n, D): what the MLP gives apart from its neurons, the same for all tokens unless they are sent to experts."""
        out = torch.zeros_like(x_nD)
        if all(units.write_bias is None for units in self.units):
            return out
        for units, share in zip(self.units, self._shares(x_nD), strict=True):
            if units.write_bias is not None:
                given = units.write_bias.to(x_nD.dtype).expand(len(share.token), -1)
                out.index_add_(0, share.token, given if share.out is None else share.out[:, None] * given)
        return out

    def output(self, x_nD: Tensor) -> Tensor:
        """(n, D): the sum over all neurons, and the bias."""
        out = self.bias(x_nD)
        for firing in self.firing(x_nD):
            out.index_add_(0, firing.token, firing.held.value @ firing.units.write.to(x_nD.dtype))
        return out


# ---- reading a layer's module


@dataclass(frozen=True)
class Layout:
    """Names of an MLP's projections; `up` None: one factor. fused: `gate` gives both, gate first. function: if no module is."""

    gate: str
    up: str | None
    down: str
    fused: bool = False
    function: Function | None = None


LAYOUTS = (
    Layout("gate_proj", "up_proj", "down_proj"),
    Layout("gate_up_proj", "gate_up_proj", "down_proj", fused=True),
    Layout("up_proj", None, "down_proj"),
    Layout("c_fc", None, "c_proj"),
    Layout("dense_h_to_4h", None, "dense_4h_to_h"),
    Layout("fc1", None, "fc2"),
    Layout("fc_in", None, "fc_out"),
    Layout("w1", "w3", "w2", function=nn.functional.silu),
)
ACTIVATIONS = ("act_fn", "act", "activation_fn", "gelu_impl")
SHARED = ("shared_expert", "shared_experts", "shared_mlp")


def read_mlp(parts: ModelParts, number: int) -> Mlp:
    """The neurons of a layer. Raises UnsupportedModelError, which names the family, for an MLP of another kind."""
    layer = parts.layers[number]
    experts = getattr(layer.mlp, "experts", None)
    if isinstance(experts, nn.Module):
        return _routed(parts, layer.mlp, experts, number)
    # BioGPT's and OPT's projections are parts of the layer itself
    found = (_dense(parts, holder, f"layer {number}") for holder in (layer.mlp, layer.module))
    dense = next((each for each in found if each is not None), None)
    if dense is None:
        raise _refusal(parts, number, f"{type(layer.mlp).__name__} has none of the known names of projections")
    return Mlp([dense], lambda x_nD: [Share(torch.arange(len(x_nD), device=x_nD.device))])


def _refusal(parts: ModelParts, number: int, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"neurons of {parts.architecture.model_type} cannot be traced: the MLP of layer {number} is not one whose neurons are "
        f"known ({why}). Known are gated and plain MLPs, with experts or without (models/mlps.py); use a transcoder instead."
    )


def _dense(parts: ModelParts, module: nn.Module, name: str) -> Units | None:
    own = next((found for each in ACTIVATIONS if (found := getattr(module, each, None)) is not None), None)
    for layout in LAYOUTS:
        function = own or layout.function
        names = {layout.gate, layout.down} | ({layout.up} if layout.up else set())
        if function is None or not all(isinstance(getattr(module, each, None), nn.Module) for each in names):
            continue
        gate, gate_bias = _projection(module, layout.gate, name)
        down, down_bias = _projection(module, layout.down, name)
        if layout.fused:
            (gate, up), biases = gate.chunk(2), (None, None) if gate_bias is None else gate_bias.chunk(2)
            return Units(Factor(gate, biases[0], function), Factor(up, biases[1]), down.T, down_bias)
        second = None if layout.up is None else Factor(*_projection(module, layout.up, name))
        return Units(Factor(gate, gate_bias, function), second, down.T, down_bias)
    return None


def _projection(module: nn.Module, path: str, name: str) -> tuple[Tensor, Tensor | None]:
    return projection(getattr(module, path), f"{name}, {path}")


def _routed(parts: ModelParts, block: nn.Module, experts: nn.Module, number: int) -> Mlp:
    """Experts as one tensor each of gates and ups, and of downs (transformers 5), and an MLP that every token gets, if any."""
    both, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not (isinstance(both, Tensor) and isinstance(down, Tensor) and both.ndim == down.ndim == 3):
        raise _refusal(parts, number, f"{type(experts).__name__} does not keep its experts in one tensor")
    both, down = both.detach(), down.detach()
    as_columns = bool(getattr(experts, "is_transposed", both.shape[1] == parts.config.d_model))
    both, down = (both.mT, down) if as_columns else (both, down.mT)  # (E, 2F, D), (E, F, D)
    biases = [getattr(experts, f"{name}_bias", None) for name in ("gate_up_proj", "down_proj")]
    both_bias, down_bias = (None if bias is None else bias.detach() for bias in biases)
    halves: Callable[[Tensor], Sequence[Tensor]] = lambda rows: rows.chunk(2)  # noqa: E731
    if getattr(experts, "is_concatenated", True) is False:
        halves = lambda rows: (rows[::2], rows[1::2])  # noqa: E731
    first, second = _functions(experts)
    units = []
    for expert in range(len(both)):
        gate, up = halves(both[expert])
        gate_bias, up_bias = (None, None) if both_bias is None else halves(both_bias[expert])
        own_bias = None if down_bias is None else down_bias[expert]
        units.append(Units(Factor(gate, gate_bias, first), Factor(up, up_bias, second), down[expert], own_bias))
    shared = next((name for name in SHARED if isinstance(getattr(block, name, None), nn.Module)), None)
    if shared is not None:
        module = getattr(block, shared)
        dense = _dense(parts, module, f"layer {number}, {shared}")
        if dense is None:
            raise _refusal(parts, number, f"{type(module).__name__} has none of the known names of projections")
        units.append(dense)
    return Mlp(units, _Routing(block, len(both), shared))


def _functions(experts: nn.Module) -> tuple[Function | None, Function | None]:
    """Of gate and up."""
    limit, alpha = getattr(experts, "limit", None), getattr(experts, "alpha", None)
    if limit is None or alpha is None:
        return next((getattr(experts, name) for name in ACTIVATIONS if hasattr(experts, name)), None), None

    def gate(z: Tensor) -> Tensor:
        z = z.clamp(max=limit)
        return z * torch.sigmoid(alpha * z)

    return gate, lambda z: z.clamp(-limit, limit) + 1


class _Routing:
    """Who gets which token, and what multiplies it: asked of the block's own code, with stand-ins for its experts."""

    def __init__(self, block: nn.Module, n_experts: int, shared: str | None) -> None:
        self.block, self.n_experts, self.shared = block, n_experts, shared

    @torch.no_grad()
    def __call__(self, x_nD: Tensor) -> list[Share]:
        weights = next(self.block.parameters())
        x = x_nD.to(weights.dtype)
        asked = _StandIn(1.0)
        factor = self._given(x, asked, 0.0).to(x_nD.dtype)
        scale_in, scale_out = asked.routed(x, self.n_experts)  # (n, E)
        shares: list[Share] = []
        for expert in range(self.n_experts):
            token = torch.nonzero(asked.gets[:, expert]).flatten()
            into = None if scale_in is None else scale_in[token, expert].to(x_nD.dtype)
            shares.append(Share(token, into, (scale_out[:, expert].to(x_nD.dtype) * factor)[token]))
        if self.shared is not None:
            every = torch.arange(len(x), device=x.device)
            shares.append(Share(every, None, self._given(x, _StandIn(0.0), 1.0).to(x_nD.dtype)))
        return shares

    def _given(self, x_nD: Tensor, experts: _StandIn, shared: float) -> Tensor:
        """What the block makes (n,) of experts that give `experts.gives` and a shared one that gives `shared`."""
        block = copy(self.block)
        block._modules = {**self.block._modules, "experts": experts}
        if self.shared is not None:
            block._modules[self.shared] = _StandIn(shared)
        out = block(x_nD[None])
        out = out[0] if isinstance(out, tuple) else out
        return cast(Tensor, out).reshape(len(x_nD), -1)[:, 0]


class _StandIn(nn.Module):
    """Gives a number for every entry, and keeps what it was given."""

    def __init__(self, gives: float) -> None:
        super().__init__()
        self.gives = gives
        self.given: tuple[Any, ...] = ()
        self.gets = torch.empty(0)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        self.given = (*given, *named.values())
        return torch.full_like(given[0], self.gives)

    def routed(self, x_nD: Tensor, n_experts: int) -> tuple[Tensor | None, Tensor]:
        """Scales (n, E) of what experts read, if it is scaled, and of what they give."""
        index = next((each for each in self.given[1:] if not each.is_floating_point()), None)
        if index is None:  # Llama 4: every expert gets every token, times its score
            given = self.given[0].view(n_experts, len(x_nD), -1)
            scale = ((given * x_nD).sum(-1) / x_nD.pow(2).sum(-1)).T
            self.gets = scale != 0
            return scale, torch.full_like(scale, 1 / n_experts)  # the block adds up what all of them give
        weight = next(each for each in self.given[1:] if each.is_floating_point())
        scale = x_nD.new_zeros(len(x_nD), n_experts + 1, dtype=weight.dtype).scatter_add_(1, index, weight)[:, :-1]
        self.gets = scale != 0
        return None, scale


def check_mlp(parts: ModelParts, number: int, x_nD: Tensor, y_nD: Tensor, tolerance: float) -> None:
    """Raise UnsupportedModelError unless a layer's neurons, fed with x, add up to what its MLP gave, and are what they read."""
    mlp = read_mlp(parts, number)
    missed = {"the sum of what its neurons write misses its output": _gap(mlp.output(x_nD), y_nD)}
    value = mlp.activations(x_nD).flatten()
    some = torch.linspace(0, len(value) - 1, min(len(value), CHECKED), device=value.device).long()
    token = some // mlp.n_neurons
    read, constant, _ = mlp.reads(x_nD, token, some % mlp.n_neurons)
    found = (read * x_nD[token]).sum(1) + constant
    missed["what its neurons read misses their activations"] = _gap(found, value[some])
    for what, gap in missed.items():
        if not gap <= tolerance:
            raise _refusal(parts, number, f"{what} by {gap:.1e}; {tolerance:.0e} is allowed")


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
