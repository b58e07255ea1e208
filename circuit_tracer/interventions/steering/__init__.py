"""Text continued with features or directions changed."""
