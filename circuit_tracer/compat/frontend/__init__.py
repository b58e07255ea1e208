"""circuit-tracer's `circuit_tracer.frontend`."""
