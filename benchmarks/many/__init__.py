"""Measurements of what is done with many prompts, and models to try it on."""
