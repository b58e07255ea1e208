"""Attribution graphs and circuit tracing with cross-layer transcoders."""
