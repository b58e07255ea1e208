"""Runs: a graph for each row of a file of prompts, on one machine or many, resumable at any moment."""
