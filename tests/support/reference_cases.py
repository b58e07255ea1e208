"""Random dictionaries and batches for tests of the training loss, from a few sizes and a readable name.

What decides whether a feature is active is drawn on a grid (multiples of 1/64): pre-activations and squared norms are then
exact in float64 in whatever order they are summed, so two implementations agree on every tie and every cut, and their losses
and gradients can be compared to rounding. Thresholds and running cuts lie off the grid, where nothing ties with them.

Use: `make(Case("clt", "batch_topk", n_tokens=5))`, `@given(cases())`, or `@each_case` for the fixed list.

Letters: S source layers, T_s layers that source s writes to, B tokens, F features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.training import reference
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.reference import Weights
from circuit_tracer.training.sparsity import RULES, rule_of

KINDS = ("clt", "plt", "skip", "sae")
ACTIVATIONS = tuple(RULES)
PATTERNS = (
    "random",  # about half of the pre-activations are positive
    "none",  # no feature is active
    "all",  # every feature is active on every token
    "repeated",  # two distinct tokens, features in equal pairs: ties everywhere
    "hot",  # one feature a layer fires on every token, the others hardly ever
    "zero_rows",  # some features write nothing
)
DEAD = ("none", "some", "all")
GRID = 64
# (kind, activation) of every rule and the dictionaries that it serves
SERVED = [(kind, name) for kind in KINDS for name in RULES if kind in rule_of(SparsitySection(activation=name)).kinds]


@dataclass(frozen=True)
class Case:
    """What an example is drawn from; its string is the test's id."""

    kind: str = "clt"
    activation: str = "batch_topk"
    n_layers: int = 3
    n_tokens: int = 5
    n_features: int = 7
    width: int = 6
    pattern: str = "random"
    dead: str = "some"
    active: float = 2.6  # k; the pattern "all" overrides it
    band_probability: float = 1.0
    rank_by: str = "row"
    prefixes: tuple[int, ...] = ()
    seed: int = 0

    def __str__(self) -> str:
        shape = f"S{self.n_layers}-B{self.n_tokens}-F{self.n_features}-D{self.width}"
        band = f"-band{self.band_probability:g}" if self.band_probability < 1 else ""
        by = f"-{self.rank_by}" if self.rank_by != "row" else ""
        by += f"-prefixes{'-'.join(map(str, self.prefixes))}" if self.prefixes else ""
        rest = f"{self.pattern}-{self.dead}_dead-k{self.active:g}{band}{by}-seed{self.seed}"
        return f"{self.kind}-{self.activation}-{shape}-{rest}"


@dataclass
class Example:
    """The arguments of `reference.loss`: loss(weights, kind, settings, x_BSD, y_BSD, **options)."""

    kind: str
    settings: SparsitySection
    weights: Weights
    x_BSD: Tensor
    y_BSD: Tensor
    options: dict[str, Any]  # the keyword arguments

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The reference's loss and its terms."""
        return reference.loss(self.weights, self.kind, self.settings, self.x_BSD, self.y_BSD, **self.options)

    def gradients(self, term: str | None = None) -> dict[str, Tensor]:
        """The reference's gradients by the names of `parameters`, of the whole loss or of one term."""
        total, terms = self.loss()
        named = parameters(self.weights)
        wanted = total if term is None else terms[term]
        if not wanted.requires_grad:
            return {name: torch.zeros_like(tensor) for name, tensor in named.items()}
        found = torch.autograd.grad(wanted, list(named.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(named, found, strict=True))

    def with_settings(self, **changes: Any) -> Example:
        """The same with other settings."""
        return replace(self, settings=self.settings.model_copy(update=changes))


def parameters(weights: Weights) -> dict[str, Tensor]:
    """Every tensor of the weights by name: W_enc.0, ..., b_dec, W_skip."""
    named: dict[str, Tensor] = {}
    for name in ("W_enc", "b_enc", "W_dec", "log_threshold", "log_scale", "b_mag"):
        named |= {f"{name}.{s}": tensor for s, tensor in enumerate(getattr(weights, name) or [])}
    for name in ("b_dec", "W_skip", "W_router", "b_router"):
        if (tensor := getattr(weights, name)) is not None:
            named[name] = tensor
    return named


def make(case: Case) -> Example:
    """The example of a case, float64, its weights leaves that need gradients. Every term of the loss has a weight."""
    draw = _Draw(case.seed)
    shape = (case.n_tokens, case.n_layers, case.width)
    weights = _weights(case, draw)
    x_BSD, y_BSD = draw.grid(*shape), draw.grid(*shape)
    if case.pattern == "repeated":
        twin = draw.integers(2, case.n_tokens).clamp_max(case.n_tokens - 1)
        x_BSD, y_BSD = x_BSD[twin], y_BSD[twin]
    active = float(case.n_features) if case.pattern == "all" else case.active
    settings = SparsitySection(
        activation=case.activation,
        active=active,
        bandwidth=1.0,  # wide, so that few entries have many near misses
        band_probability=case.band_probability,
        rank_by=case.rank_by,
        aux_active=2,
        pre_activation_weight=0.1,
        jacobian_weight=0.0 if case.kind == "sae" or case.activation == "gated" else 0.1,
        experts=experts_of(case.n_features),
        prefixes=list(case.prefixes) or None,
    )
    options: dict[str, Any] = {
        "active": active,
        "penalty": 0.5,
        "dead": [draw.dead(case) for _ in range(case.n_layers)],
        "running_cut": 0.1 + float(draw.uniform(1)),
    }
    if case.prefixes:
        options["prefixes"] = case.prefixes
    if settings.jacobian_weight:
        options |= {
            "direction_BSD": draw.normal(*shape),
            "derivative_BSD": draw.normal(*shape),
            "derivative_scale_S": 0.5 + draw.uniform(case.n_layers),
        }
    if case.band_probability < 1 and "band_probability" in RULES[case.activation].reads:
        options["band"] = [draw.band(case) for _ in range(case.n_layers)]
    return Example(case.kind, settings, weights, x_BSD, x_BSD if case.kind == "sae" else y_BSD, options)


def _weights(case: Case, draw: _Draw) -> Weights:
    n_layers, n_features, width = case.n_layers, case.n_features, case.width
    weights = Weights([], [], [], b_dec=draw.grid(n_layers, width, scale=0.3))
    for source in range(n_layers):
        n_targets = len(reference.targets(case.kind, source, n_layers))
        W_enc = draw.grid(n_features, width, scale=width**-0.5)
        W_dec = draw.grid(n_features, n_targets * width, scale=(n_layers * width) ** -0.5)
        b_enc = draw.grid(n_features, scale=0.3)
        if case.pattern == "repeated":
            pair = torch.arange(n_features) // 2 * 2
            W_enc, W_dec, b_enc = W_enc[pair], W_dec[pair], b_enc[pair]
        elif case.pattern == "hot":
            b_enc -= 2
            b_enc[int(draw.integers(n_features, 1))] += 34
        elif case.pattern == "zero_rows":
            W_dec[draw.uniform(n_features) < 0.5] = 0
        b_enc += {"none": -64, "all": 64}.get(case.pattern, 0)
        weights.W_enc.append(W_enc)
        weights.b_enc.append(b_enc)
        weights.W_dec.append(W_dec)
    if case.kind == "skip":
        weights.W_skip = draw.grid(n_layers, width, width, scale=width**-0.5)
    if rule_of(SparsitySection(activation=case.activation)).learns_thresholds:
        weights.log_threshold = [draw.normal(n_features) * 0.5 - 1 for _ in range(n_layers)]
    if case.activation == "gated":
        weights.log_scale = [draw.grid(n_features, scale=0.5) for _ in range(n_layers)]
        weights.b_mag = [b_enc + draw.grid(n_features, scale=0.5) for b_enc in weights.b_enc]
    if case.activation == "switch":
        n_experts = experts_of(n_features)
        weights.W_router = draw.grid(n_layers, n_experts, width, scale=width**-0.5)
        weights.b_router = draw.grid(n_layers, n_experts, scale=0.3)
    for tensor in parameters(weights).values():
        tensor.requires_grad_(True)
    return weights


def experts_of(n_features: int) -> int:
    """The fewest experts that can share features evenly, two or more."""
    return next((count for count in range(2, n_features + 1) if n_features % count == 0), 2)


class _Draw:
    """Random tensors, float64, from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def grid(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (self.normal(*shape) * (scale * GRID)).round() / GRID

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def integers(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator)

    def dead(self, case: Case) -> Tensor:
        return self.uniform(case.n_features) < {"none": 0.0, "some": 0.4, "all": 1.0}[case.dead]

    def band(self, case: Case) -> Tensor:
        """Each near miss is seen with probability p and then counts 1/p."""
        seen = self.uniform(case.n_tokens, case.n_features) < case.band_probability
        return seen.double() / case.band_probability


def cases(
    kinds: tuple[str, ...] = KINDS, activations: tuple[str, ...] = ACTIVATIONS, patterns: tuple[str, ...] = PATTERNS
) -> st.SearchStrategy[Case]:
    """Any case of these kinds, activations and patterns."""
    served = [pair for pair in SERVED if pair[0] in kinds and pair[1] in activations]
    return st.builds(
        lambda pair, n_features, prefixes, **rest: Case(
            *pair,
            n_features=n_features + (pair[1] == "switch"),
            prefixes=tuple(sorted({end for end in prefixes if end < n_features})) if pair[1] != "switch" else (),
            **rest,
        ),
        pair=st.sampled_from(served),
        prefixes=st.sampled_from([(), (), (1,), (2, 5)]),
        n_layers=st.integers(1, 4),
        n_tokens=st.sampled_from([1, 5, 63]),
        n_features=st.sampled_from([1, 7, 37]),
        width=st.sampled_from([1, 6, 60]),
        pattern=st.sampled_from(patterns),
        dead=st.sampled_from(DEAD),
        active=st.sampled_from([0.4, 1.0, 2.6]),
        band_probability=st.sampled_from([1.0, 0.5]),
        rank_by=st.sampled_from(["row", "target"]),
        seed=st.integers(0, 999),
    )


def _widest(activation: str) -> str:
    """The first kind that a rule serves."""
    return next(kind for kind, name in SERVED if name == activation)


def _case(kind: str, activation: str, **rest: Any) -> Case:
    """A case whose features are dealt out evenly to experts."""
    return Case(kind, activation, n_features=8 if activation == "switch" else 7, **rest)


CASES = list(
    dict.fromkeys(
        [
            *(_case(kind, activation) for kind, activation in SERVED),
            *(_case(_widest(name), name, pattern=pattern) for name, pattern in product(ACTIVATIONS, PATTERNS)),
            *(_case(_widest(name), name, dead=dead) for name, dead in product(ACTIVATIONS, DEAD)),
            *(_case(kind, activation, prefixes=(2, 3)) for kind, activation in SERVED if activation != "switch"),
            *(Case(kind, "jumprelu", n_tokens=63, band_probability=0.5) for kind in KINDS),
            *(Case("clt", "batch_topk", dead=dead, rank_by="target") for dead in DEAD),
            *(Case(_widest(activation), activation, 4, 63, 38, 60) for activation in ACTIVATIONS),
            Case("clt", "jumprelu", 4, 63, 38, 60, prefixes=(1, 9, 20)),
            *(Case(kind, "batch_topk", 1, 1, 1, 1) for kind in KINDS),
        ]
    )
)
each_served = pytest.mark.parametrize(("kind", "activation"), SERVED, ids=["-".join(pair) for pair in SERVED])
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def close(found: Tensor | float, expected: Tensor | float) -> None:
    """Assert equality to rounding."""
    as_double = [torch.as_tensor(value, dtype=torch.float64).detach() for value in (found, expected)]
    torch.testing.assert_close(*as_double, rtol=1e-10, atol=1e-10)


def pre_activations(example: Example) -> list[Tensor]:
    """(B, F) a source."""
    weights, x_BSD = example.weights, example.x_BSD
    return [x_BSD[:, s] @ W.T + b for s, (W, b) in enumerate(zip(weights.W_enc, weights.b_enc, strict=True))]


def decoder_norms(example: Example) -> list[Tensor]:
    """(F,) a source, over all targets."""
    return [W.square().sum(1).sqrt() for W in example.weights.W_dec]


def activations_of(example: Example) -> list[Tensor]:
    """(B, F) a source, as the reference has them."""
    pre, norms = pre_activations(example), decoder_norms(example)
    reach = [W.shape[1] // example.x_BSD.shape[2] for W in example.weights.W_dec]
    routed = reference.router(example.weights, example.x_BSD)
    active, band = example.options["active"], example.options.get("band")
    return reference.activate(example.weights, example.settings, pre, norms, reach, active, band, routed)
