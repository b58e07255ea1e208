"""An import path of circuit-tracer, and nothing else (see `circuit_tracer.utils`): `frontend.local_server`."""
