"""circuit-tracer's `circuit_tracer.transcoder.activation_functions`."""

from circuit_tracer.transcoders.activations import JumpReLU, TopK

__all__ = ["JumpReLU", "TopK"]
