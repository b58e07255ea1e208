"""Two records of one prompt side by side, ours and circuit-tracer's, and interventions on both."""
