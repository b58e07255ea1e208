"""Per-layer against cross-layer transcoders on circuits that are known: what their graphs claim, and what is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from circuit_tracer.demo.probes import predictions
from circuit_tracer.demo.toys.absolute import absolute_values
from circuit_tracer.demo.toys.boolean import boolean_circuit
from circuit_tracer.demo.toys.claims import (
    alike,
    derivative_agreement,
    flows,
    quality,
    response,
    units_on_path,
)
from circuit_tracer.demo.toys.dictionaries import exact, trained
from circuit_tracer.demo.toys.network import Toy, language_model
from circuit_tracer.transcoders.base import Transcoders

KNOWN, PER_LAYER, CROSS_LAYER = "known circuit", "per-layer", "cross-layer"
# (features a layer, active features a layer and prompt); the circuits have 4 and 16 units, of which 0.6 and 2.7 are active
BOOLEAN_SIZE, ABSOLUTE_SIZE = (8, 0.7), (24, 2.5)
FRESH = 40  # prompts looked at besides the repeated one

Claims = dict[str, dict[str, float]]  # by dictionary, then by claim


def report(steps: int = 800, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Claims]:
    """What each dictionary claims about each toy: means over `seeds` of training, of `steps` each (some minutes).

    Args:
        steps: Of training.
        seeds: Of training, one run each.

    Returns:
        What each dictionary claims, by toy.
    """
    return {
        "boolean circuit": claims_of(boolean_circuit(), BOOLEAN_SIZE, steps, seeds, boolean_claims),
        "absolute value": claims_of(absolute_values(), ABSOLUTE_SIZE, steps, seeds, absolute_claims),
    }


def boolean_claims(toy: Toy, transcoders: Transcoders) -> dict[str, float]:
    """Over all prompts with the answer "true".

    depth: `Flow.depth`. units found: share of the units on a path to the answer for which a feature on such a path stands.
    response to a unit switched off: of the answer, as a share of the model's own, units of all layers but the last.
    """
    logits_NV = predictions(language_model(toy), toy.prompts_NP)
    right = (logits_NV.argmax(1) == toy.words.index("true")).nonzero().flatten()
    truth = flows(toy, exact(toy), right.tolist())
    claimed = flows(toy, transcoders, right.tolist())
    same = [torch.eye(len(units.bias_M), dtype=torch.bool) for units in toy.layers]
    stands_for = alike(toy, transcoders)
    found: list[bool] = []
    changes: list[tuple[float, float]] = []
    for layer in range(len(toy.layers)):
        true_BM = torch.stack([units_on_path(graph, flow, layer, same[layer]) for graph, flow in truth])
        there_BM = torch.stack([units_on_path(graph, flow, layer, stands_for[layer]) for graph, flow in claimed])
        found += there_BM[true_BM].tolist()
        if layer < len(toy.layers) - 1:
            units = true_BM.any(0).nonzero().flatten().tolist()
            changes += [
                response(toy, transcoders, toy.prompts_NP[right[true_BM[:, unit]]], layer, unit) for unit in units
            ]
    own, dictionary = (sum(column) for column in zip(*changes, strict=True))
    return {
        "depth": fmean(flow.depth for _, flow in claimed),
        "units found": fmean(found),
        "response to a unit switched off": dictionary / own,
    }


def absolute_claims(toy: Toy, transcoders: Transcoders) -> dict[str, float]:
    """On the repeated prompt and on others (evenly chosen, answer clear).

    from inputs that matter: share of the answer's input that comes from the inputs of its pair. derivative:
    `derivative_agreement`.
    """
    logits_NV = predictions(language_model(toy), toy.prompts_NP)
    top_N2 = logits_NV.topk(2).values
    clear = (top_N2[:, 0] - top_N2[:, 1] > 1).nonzero().flatten().tolist()
    claims: dict[str, float] = {}
    for name, prompts in (("repeated", [0]), ("fresh", clear[1 :: len(clear) // FRESH])):
        shares = []
        for prompt, (_, flow) in zip(prompts, flows(toy, transcoders, prompts), strict=True):
            pair = int(logits_NV[prompt].argmax()) - toy.words.index("pair0")
            inputs = [toy.words[word].partition("=")[0] for word in toy.prompts_NP[prompt].tolist()]
            matter_P = torch.tensor([one in (f"x{2 * pair}", f"x{2 * pair + 1}") for one in inputs])
            shares.append(float(flow.from_P[matter_P].sum()))
        claims |= {
            f"from inputs that matter, {name}": fmean(shares),
            f"derivative, {name}": derivative_agreement(toy, transcoders, prompts),
        }
    return claims


def claims_of(
    toy: Toy,
    size: tuple[int, float],
    steps: int,
    seeds: Sequence[int],
    claims: Callable[[Toy, Transcoders], dict[str, float]],
) -> Claims:
    """The claims of the circuit itself, of per-layer and of cross-layer transcoders."""
    dictionaries: dict[str, list[Transcoders]] = {
        KNOWN: [exact(toy)],
        PER_LAYER: [trained(toy, "plt", *size, steps, seed) for seed in seeds],
        CROSS_LAYER: [trained(toy, "clt", *size, steps, seed) for seed in seeds],
    }
    found: Claims = {}
    for name, group in dictionaries.items():
        rows = [quality(toy, one) | claims(toy, one) for one in group]
        found[name] = {key: round(fmean(row[key] for row in rows), 4) for key in rows[0]}
    return found


def table(claims: Claims) -> list[str]:
    """Lines of text: one a claim, one column a dictionary.

    Args:
        claims: Of one toy.

    Returns:
        Lines of text.
    """
    head = f"  {'':34}" + "".join(f"{name:>18}" for name in claims)
    names = next(iter(claims.values()))
    return [head, *(f"  {name:34}" + "".join(f"{found[name]:18.3f}" for found in claims.values()) for name in names)]
