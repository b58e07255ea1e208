"""circuit-tracer's `circuit_tracer.utils.salient_logits`."""

from circuit_tracer.attribution.attribution_targets import compute_salient_logits

__all__ = ["compute_salient_logits"]
