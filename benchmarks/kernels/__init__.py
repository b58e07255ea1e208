"""Each kernel beside torch's own."""
