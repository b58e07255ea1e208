"""Was a graph traced with this model and these transcoders?"""

from __future__ import annotations

from typing import Any

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.fingerprint import VERSION, fingerprints
from circuit_tracer.graph.graph import Graph


def require_traced_with(graph: Graph, model: Traceable) -> bool:
    """Raise CompatibilityError if sizes, fingerprints or features say that it was not. Whether fingerprints were compared:
    weights in another number format have others, and some files hold none, or those of another recipe. InputError for a graph
    that was traced under an intervention, which the model by itself does not repeat.
    """
    if edits := graph.provenance.get("edits"):
        raise InputError(
            f"the graph was traced under an intervention ({'; '.join(map(str, edits))[:200]}), which running the model again "
            "does not repeat. Use the graph of the prompt without it; the two can be compared"
        )
    _require_sizes(graph, model)
    compared = _compare_fingerprints(graph, model)
    _require_features(graph, model)
    return compared


def require_attention_as_it_is(graph: Graph, what: str) -> None:
    """Raise InputError for a graph whose attention a dictionary replaces, which `what` does not know."""
    if graph.attention:
        raise InputError(
            f"{what} knows attention as the model's own heads; in this graph a dictionary ({graph.parts[-1].name}) "
            "replaces it. Trace the prompt without it (leave attention out)"
        )


def _compare_fingerprints(graph: Graph, model: Traceable) -> bool:
    there = graph.provenance.get("fingerprint")
    if not isinstance(there, dict) or there.get("version") != VERSION:
        return False
    here, compared = fingerprints(model.parts, model.transcoders, model.attention), True
    if there.get("attention") != here.get("attention") and there.get("transcoder_dtype") == here["transcoder_dtype"]:
        raise CompatibilityError(
            f"the graph was made with {_named(there)}, the model here has {_named(here)}. Load the dictionary that it "
            "was traced with (attention=...), or trace the prompt again."
        )
    for name, what in (("model", "another model"), ("transcoder", "other transcoders")):
        if there.get(f"{name}_dtype") != here[f"{name}_dtype"]:
            compared = False
        elif there.get(name) != here[name]:
            raise CompatibilityError(
                f"the graph was made with {what}: fingerprint of the weights {there.get(name)} there, {here[name]} here "
                f"({graph.cfg.model_name}, {graph.scan} there; {model.parts.config.model_name}, {model.transcoders.scan} "
                "here). Load those it was traced with, or trace the prompt again."
            )
    return compared


def _named(found: dict[str, Any]) -> str:
    return (
        f"the dictionary of attention outputs {found['attention']}"
        if "attention" in found
        else "none of attention outputs"
    )


def _require_features(graph: Graph, model: Traceable) -> None:
    transcoders, features = model.transcoders, graph.active_features.cpu()
    if model.attention is not None:
        features = features[features[:, 2] < transcoders.d_transcoder]
    layer, index = features[:, 0], features[:, 2]
    for each in layer.unique().tolist():
        if (most := int(index[layer == each].max())) >= transcoders.n_features(each):
            raise CompatibilityError(
                f"the graph has feature {most} in layer {each}; these transcoders have features 0 to "
                f"{transcoders.n_features(each) - 1} there. Use the transcoders it was traced with."
            )


def _require_sizes(graph: Graph, model: Traceable) -> None:
    here = model.parts.config
    for name in ("n_layers", "d_model", "d_vocab"):
        there = getattr(graph.cfg, name)
        if there is not None and there != getattr(here, name):
            raise CompatibilityError(
                f"the graph was traced on {graph.cfg.model_name} with {name} {there}; the model here, {here.model_name}, "
                f"has {getattr(here, name)}. Load the model that the graph was traced on."
            )
