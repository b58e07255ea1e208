"""Probes: linear readings of a model's activations that say yes or no, and why (README.md)."""

from __future__ import annotations
