"""Features set, scaled, ablated or added, and what the model then does."""
