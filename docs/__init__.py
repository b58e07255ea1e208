"""The documentation: pages, what is made of them for the site (hooks.py), and what is written from the code (generate/)."""
