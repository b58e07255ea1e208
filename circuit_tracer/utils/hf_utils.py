"""circuit-tracer's `circuit_tracer.utils.hf_utils`."""

from circuit_tracer.transcoders.loading import load_transcoder_from_hub, load_transcoders
from circuit_tracer.transcoders.references import HubReference as HfUri
from circuit_tracer.transcoders.references import parse_hub_uri as parse_hf_uri

__all__ = ["HfUri", "load_transcoder_from_hub", "load_transcoders", "parse_hf_uri"]
