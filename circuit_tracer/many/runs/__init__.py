"""A run: rows of prompts traced by workers into one folder, which may be interrupted, shared and added to (README.md)."""
