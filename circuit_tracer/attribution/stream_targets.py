"""Targets that read the residual stream on its way: a direction at any site, and the score of an attention head.

All become `StreamReads`: vectors in the stream, with the norms between the stream and the site at their frozen scales.

Letters: D d_model, H heads, P positions, d d_head, n places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import number, whole
from circuit_tracer.attribution.contrast import contrast_of
from circuit_tracer.errors import CompatibilityError, InputError, shortened
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.targets import TargetKind
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.indices import from_the_front, require_layer
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.queries_keys import read_scores
from circuit_tracer.models.sites import site_of
from circuit_tracer.transcoders.base import Transcoders

SIDES = ("both", "query", "key")


class DirectionTarget(NamedTuple):
    """What a vector (D,) reads at a site of the stream: a probe, a steering vector, a direction of any kind.

    Its row sums to <vector, activation>.

    Attributes:
        vector: (D,), finite and not zero.
        site: `hook_resid_pre`, `hook_resid_mid`, `hook_resid_post`, or a place behind one of the layer's norms or
            between two of these (`DIRECTION_SITES`), or `attn.hook_z`, of which the vector is (H * d).
        layer: Of the site.
        position: -1 is the last token.
        weight: Factor on the row.
        label: Text shown to people; "": made of the place.
    """

    vector: Tensor
    site: str
    layer: int
    position: int = -1
    weight: float = 1.0
    label: str = ""


class DirectionSum(NamedTuple):
    """Several directions read as one target, each times its weight, and a constant: the score of a probe, for one.

    Its row and the constant sum to constant + sum of weight * <vector, activation>.

    Attributes:
        directions: What is summed.
        constant: Added to the sum.
        weight: Factor on the whole; influence takes its size.
        label: Text shown to people; "": made of the directions.
    """

    directions: tuple[DirectionTarget, ...]
    constant: float = 0.0
    weight: float = 1.0
    label: str = ""


class AttentionTarget(NamedTuple):
    """Why a head looks where it looks: the score of (layer, head, query, key) before the softmax.

    Attributes:
        layer: Of the head.
        head: Its number.
        query: Position that looks; negative ones count from the end.
        key: Position that is looked at.
        versus: Another key, or "rest" for all others that the query sees, in proportion to their attention: then it is
            the difference of the scores, which is the difference of the logs of attention.
        side: The score is a product of what the query's token holds and what the key's token holds. "key" takes the
            query as given and explains the key, "query" the other way round; "both" is half of each, a node's Shapley
            share of the product. Each sums to the score.
        weight: Factor on the row.

    Examples:
        >>> from circuit_tracer import AttentionTarget, attribute
        >>> why = attribute(PROMPT, model, attribution_targets=[AttentionTarget(1, 0, query=-1, key=7, versus="rest")])
        >>> why.targets.label
        ["L1H0 'is'@8 -> 'Dallas'@7 rather than the rest"]
    """

    layer: int
    head: int
    query: int
    key: int
    versus: int | str | None = None
    side: str = "both"
    weight: float = 1.0

    @property
    def place(self) -> tuple[int, int, int, int, int | str | None]:
        """Layer, head, query, key and versus: which score it is."""
        return self[:5]


@dataclass(frozen=True)
class StreamTarget:
    """A target resolved: its reads (all of row 0), and what is added to them. It is a target of any trace of the prompt."""

    label: str
    reads: StreamReads
    constant: float
    kind: TargetKind = "direction"
    weight: float = 1.0

    @property
    def layer(self) -> int:
        """The last layer it reads."""
        return int(self.reads.layer.max())

    @property
    def position(self) -> int:
        """The last position it reads."""
        return int(self.reads.position.max())


class _Place(NamedTuple):
    """A term of a site's activation: the stream so many layers up, entering that layer or before its MLP."""

    up: int
    entering: bool
    sign: int = 1


class _Way(NamedTuple):
    """How a site's activation follows from the stream: a sum of places, a norm, with its gain or before it."""

    places: tuple[_Place, ...]
    norm: str | None = None
    gain: bool = True


_PRE, _MID, _POST = _Place(0, True), _Place(0, False), _Place(1, True)
HEADS = "attn.hook_z"  # read through the pattern, at all tokens that are looked at
DIRECTION_SITES = {
    "hook_resid_pre": _Way((_PRE,)),
    "ln1.hook_normalized": _Way((_PRE,), "attention_norm", gain=False),
    "hook_attn_out": _Way((_MID, _PRE._replace(sign=-1))),
    "hook_resid_mid": _Way((_MID,)),
    "ln2.hook_normalized": _Way((_MID,), "mlp_norm", gain=False),
    "mlp.hook_in": _Way((_MID,), "mlp_norm"),
    "hook_mlp_out": _Way((_POST, _MID._replace(sign=-1))),
    "hook_resid_post": _Way((_POST,)),
}


def resolve_direction(network: FrozenNetwork, target: DirectionTarget) -> StreamTarget:
    """Raises InputError for a vector, site, layer or position that cannot be, CompatibilityError for a site that the
    architecture has not.
    """
    name, layer = site_of(network.parts, target.site).name, require_layer(target.layer, network.n_layers)
    if name not in DIRECTION_SITES and name != HEADS:
        raise InputError(f"a direction cannot be read at {name!r}; it can at {', '.join([*DIRECTION_SITES, HEADS])}")
    position = from_the_front(target.position, network.captured.n_pos)
    if not isinstance(target.label, str):
        raise InputError(f"a target's label is {shortened(target.label)}; give text, or none")
    label = target.label or f"direction at {name.removeprefix('hook_')} {layer}"
    heads = int(network.parts.layers[layer].output_weight.shape[1])  # which may differ between layers
    width = heads if name == HEADS else network.parts.config.d_model
    vector = read_vector(target.vector, label, network.captured.final.new_empty(width))
    constant = 0.0
    if name == HEADS:
        reads, constant = _of_heads(network, layer, position, vector)
        return StreamTarget(label, reads, constant, weight=target.weight)
    way = DIRECTION_SITES[name]
    if len(way.places) > 1:
        if network.parallel:
            raise CompatibilityError(
                f"{name} of this model, whose attention and MLP run side by side, is no difference of the stream at two "
                "places; read hook_resid_pre or hook_resid_post"
            )
        vector = vector / network.parts.residual_multiplier
    norm: FrozenNorm | None = None if way.norm is None else getattr(network.layers[layer], way.norm)
    if norm is not None:
        constant = float(vector @ norm.shift) if way.gain and norm.shift is not None else 0.0
        vector = norm.adjoint_at(vector[None], torch.tensor([position], device=vector.device), gain=way.gain)[0]
    above = network.layers[layer].parts.multiplier if len(way.places) > 1 else 1.0  # of the stream behind the layer
    places = [
        (layer + place.up, place.entering, position, place.sign * vector / (above if place.up else 1.0))
        for place in way.places
    ]
    return StreamTarget(label, _reads(places), constant, weight=target.weight)


def _of_heads(network: FrozenNetwork, layer: int, position: int, vector_O: Tensor) -> tuple[StreamReads, float]:
    """What a vector (H * d) reads of the heads' outputs at a position: their values, at every token they look at, in the shares
    of the pattern; and what biases of values and the shift of the norm in front add.
    """
    frozen = network.layers[layer]
    if not frozen.mixing.plain or frozen.latent_inverse_sigma is not None:
        at, n_seen = torch.tensor([position], device=vector_O.device), position + 1
        read_PD = frozen.heads_back(vector_O[None], at, n_seen)[0]
        empty = frozen.heads(torch.zeros_like(network.captured.embedding), constants=True)[position]
        return _reads([(layer, True, key, read_PD[key]) for key in range(n_seen)]), float(vector_O @ empty)
    parts, look_HP = frozen.parts, frozen.pattern_rows(torch.tensor([position]), position + 1)[0]
    n_heads, n_seen = look_HP.shape
    vector_Hd = vector_O.view(n_heads, -1)
    shared_PKd = torch.einsum("hp,hd->phd", look_HP, vector_Hd).unflatten(1, (frozen.n_kv, -1)).sum(2)
    read_PD = shared_PKd.flatten(1) @ parts.value_weight.to(vector_O)
    constant = 0.0 if parts.value_bias is None else float(shared_PKd.flatten(1).sum(0) @ parts.value_bias.to(vector_O))
    if (norm := frozen.attention_norm) is not None:
        constant += 0.0 if norm.shift is None else float(read_PD.sum(0) @ norm.shift)
        read_PD = norm.adjoint_at(read_PD, torch.arange(n_seen, device=read_PD.device))
    seen = look_HP.any(0).nonzero()[:, 0].tolist()
    return _reads([(layer, True, key, read_PD[key]) for key in seen]), constant


def latent_target(
    autoencoders: Transcoders, layer: int, position: int, index: int, weight: float = 1.0
) -> DirectionSum:
    """A feature of an autoencoder as a target: its row sums to the feature's pre-activation.

    Args:
        autoencoders: The dictionary (`load_dictionary`).
        layer: Of the feature.
        position: Negative ones count from the end.
        index: Of the feature in its layer.
        weight: Factor on the row; influence takes its size.

    Returns:
        A target for `attribute(..., attribution_targets=[...])`, in units of the feature's pre-activation.

    Raises:
        InputError: For transcoders (`FeatureTarget` reads theirs), a switch, and for a layer or feature that does not
            exist.
    """
    if not autoencoders.is_autoencoder:
        raise InputError(
            f"the dictionary reads {autoencoders.feature_input_hook} and writes {autoencoders.feature_output_hook}: a feature "
            "of transcoders is a node of the graph; name it as feature:LAYER:POSITION:INDEX (FeatureTarget)"
        )
    autoencoders.require_linear()
    rows, bias = autoencoders.encoder_rows(whole(layer, "layer"), torch.tensor([whole(index, "feature")]))
    place = autoencoders.feature_input_hook
    label = f"sae feature {layer}/{index} at {place.removeprefix('hook_')} {layer}"
    return DirectionSum((DirectionTarget(rows[0], place, layer, position),), float(bias), weight, label)


def resolve_sum(network: FrozenNetwork, target: DirectionSum) -> StreamTarget:
    """Raises InputError for no direction, and what `resolve_direction` raises for one of them."""
    if not target.directions:
        raise InputError("a sum of directions names none; give one at least")
    found = [resolve_direction(network, each) for each in target.directions]
    constant = number(target.constant, "the constant of a target") + sum(each.weight * each.constant for each in found)
    reads = StreamReads.joined([each.reads.scaled(each.weight) for each in found])
    return StreamTarget(target.label or f"sum of {len(found)} directions", reads, constant, weight=target.weight)


def resolve_attention(network: FrozenNetwork, target: AttentionTarget, tokens: list[str]) -> StreamTarget:
    """tokens: P texts, for the label. Raises InputError for a layer, head, query or key that cannot be."""
    if target.side not in SIDES:
        raise InputError(f"side is {target.side!r}; expected one of {', '.join(SIDES)}")
    layer = require_layer(target.layer, network.n_layers)
    scores = read_scores(network.parts, network.captured, [layer])[layer]
    contrast = contrast_of(scores, target.head, target.query, target.key, target.versus)
    share = 0.5 if target.side == "both" else 1.0
    places, constant = [], 0.0
    if target.side != "query":
        vectors, constants = contrast.key_side(scores)
        places += [(layer, True, key, share * vector) for key, vector in zip(contrast.keys, vectors, strict=True)]
        constant += share * float(constants.sum())
    if target.side != "key":
        vector, own = contrast.query_side(scores)
        places.append((layer, True, contrast.query, share * vector))
        constant += share * float(own)
    return StreamTarget(contrast.label(layer, tokens), _reads(places), constant, "attention", target.weight)


def read_vector(given: object, label: str, like_D: Tensor) -> Tensor:
    """A vector (D,) that can be read with, in the dtype and on the device of another one. Raises InputError."""
    try:
        vector = torch.as_tensor(given).detach().to(like_D)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"target {label!r}: the vector is {shortened(given)}; give a tensor (D,)") from error
    if vector.shape != like_D.shape or not torch.isfinite(vector).all() or not vector.any():
        raise InputError(
            f"target {label!r}: the vector must be finite, not zero, and of shape {tuple(like_D.shape)}, "
            f"got {tuple(vector.shape)}"
        )
    return vector


def _reads(places: list[tuple[int, bool, int, Tensor]]) -> StreamReads:
    layer, entering, position, vector = zip(*places, strict=True)
    return StreamReads(
        row=torch.zeros(len(places), dtype=torch.int64),
        layer=torch.tensor(layer),
        entering=torch.tensor(entering),
        position=torch.tensor(position),
        vector=torch.stack(vector).cpu(),
    )
