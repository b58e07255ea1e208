"""Many prompts, measured: fine-tunes with a known change, and whether comparison, fingerprints and reports find it."""
