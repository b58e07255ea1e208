"""The configuration of a training run: its keys, files of them, and which values contradict each other."""
