"""Models, dictionaries and prompts that are measured on."""
