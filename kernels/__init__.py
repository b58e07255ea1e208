"""Numerical kernels, one folder an operation; imported as ``circuit_tracer.kernels``."""
