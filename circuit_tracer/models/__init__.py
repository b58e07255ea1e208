"""The language model: loading, one table of architectures, capture, and the frozen linear network of one prompt."""
