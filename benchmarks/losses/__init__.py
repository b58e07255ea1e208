"""Whether work is ever lost (`__main__.py`)."""
