"""What learns two classes from rows of numbers, and how well it does on groups that it has not seen; nothing of models."""

from __future__ import annotations
