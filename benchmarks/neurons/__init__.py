"""Neurons as nodes: what a trace costs, whether effects are those of ablations, and how few neurons hold a behaviour."""
