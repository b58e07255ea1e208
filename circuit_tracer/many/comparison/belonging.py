"""Whether two graphs can be compared, and what they have in common."""

from __future__ import annotations

import torch

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph.graph import Graph


def in_common(a: Graph, b: Graph) -> list[str]:
    """Of "prompt", "model", "dictionary" and "edits" those that are the same in both; without fingerprints, models and
    dictionaries are not known to be.

    Raises CompatibilityError for graphs of models of other sizes, or of two dictionaries, whose features have nothing in
    common; InputError for a graph without balance.
    """
    for graph, which in ((a, "first"), (b, "second")):
        if graph.balance is None or graph.edited:
            reason = (
                "its edges have been changed" if graph.edited else "it holds no balance (biases and pre-activations)"
            )
            raise InputError(
                f"the {which} graph, of {graph.input_string!r}, cannot be accounted for: {reason}. Trace the prompt again, and "
                "keep it as .safetensors"
            )
    for name in ("n_layers", "d_model", "d_vocab"):
        there, here = getattr(a.cfg, name), getattr(b.cfg, name)
        if there is not None and here is not None and there != here:
            raise CompatibilityError(
                f"the graphs are of models of other sizes: {name} is {there} of {a.cfg.model_name} and {here} of "
                f"{b.cfg.model_name}. Compare graphs of one model, or of a model and its fine-tune"
            )
    found = {
        "prompt": torch.equal(a.input_tokens.cpu(), b.input_tokens.cpu()),
        "model": _same_weights(a, b, "model") is True,
        "dictionary": _same_weights(a, b, "transcoder") is True,
        "edits": a.provenance.get("edits") == b.provenance.get("edits"),
    }
    if found["dictionary"] and _same_weights(a, b, "attention") is False:
        prints = [graph.provenance["fingerprint"]["attention"] for graph in (a, b)]
        raise CompatibilityError(
            f"the graphs were traced with two dictionaries of attention outputs (fingerprints {' and '.join(prints)}), whose "
            "features have nothing in common. Trace both with the same attention=..., or one of them without it"
        )
    if _same_weights(a, b, "transcoder") is False:
        prints = [graph.provenance["fingerprint"]["transcoder"] for graph in (a, b)]
        raise CompatibilityError(
            f"the graphs were traced with two dictionaries ({a.scan} and {b.scan}; fingerprints {' and '.join(prints)}), whose "
            "features have nothing in common. Trace both with the same transcoders: one dictionary serves a model and its "
            "fine-tunes"
        )
    return [name for name, same in found.items() if same]


def _same_weights(a: Graph, b: Graph, what: str) -> bool | None:
    """None where fingerprints are missing, by another recipe, or of other number formats."""
    first, second = (graph.provenance.get("fingerprint") for graph in (a, b))
    if not (isinstance(first, dict) and isinstance(second, dict) and what in first and what in second):
        return None
    if any(first.get(name) != second.get(name) for name in ("version", f"{what}_dtype")):
        return None
    return bool(first[what] == second[what])
