"""Speed and quality of training."""
