"""Two graphs side by side: what differs, and an exact account of the change of a target."""
