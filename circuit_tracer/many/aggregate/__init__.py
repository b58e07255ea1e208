"""What the graphs of many prompts have in common."""
