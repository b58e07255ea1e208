"""Heads of attention: what they give or where they look is changed, and what becomes of patterns is measured."""
