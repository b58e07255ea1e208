"""From a checkpoint to files that tracers read, and to the hub."""
