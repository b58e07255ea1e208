"""A run from its first step to its last: what it needs, the loop, its state on disk, and what it tells."""
