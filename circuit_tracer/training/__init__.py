"""Training of transcoders, from a model and text to files that can be traced with. The method: README.md."""
