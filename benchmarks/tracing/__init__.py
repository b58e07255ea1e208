"""Speed and memory of attribution."""
