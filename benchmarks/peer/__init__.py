"""Scripts that run in the environments of circuit-tracer and decode-clt."""
