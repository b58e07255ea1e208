"""Many prompts: runs over a file of them, comparison, what a set has in common, fingerprints, reports."""
