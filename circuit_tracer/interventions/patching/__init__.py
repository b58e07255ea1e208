"""Activations of one prompt put into another's run, place by place."""
