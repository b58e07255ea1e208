"""Was a graph traced with this model and these transcoders?"""

from __future__ import annotations

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.fingerprint import VERSION, fingerprints
from circuit_tracer.graph.graph import Graph


def require_traced_with(graph: Graph, model: Traceable) -> bool:
    """Raise CompatibilityError if sizes or fingerprints say that it was not. Whether fingerprints were compared: weights in
    another number format have others, and some files hold none, or those of another recipe.
    """
    _require_sizes(graph, model)
    return _compare_fingerprints(graph, model)


def _compare_fingerprints(graph: Graph, model: Traceable) -> bool:
    there = graph.provenance.get("fingerprint")
    if not isinstance(there, dict) or there.get("version") != VERSION:
        return False
    here, compared = fingerprints(model.parts, model.transcoders), True
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


def _require_sizes(graph: Graph, model: Traceable) -> None:
    here = model.parts.config
    for name in ("n_layers", "d_model", "d_vocab"):
        there = getattr(graph.cfg, name)
        if there is not None and there != getattr(here, name):
            raise CompatibilityError(
                f"the graph was traced on {graph.cfg.model_name} with {name} {there}; the model here, {here.model_name}, "
                f"has {getattr(here, name)}. Load the model that the graph was traced on."
            )
