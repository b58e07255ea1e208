"""What commands print with `--json`: the types of their lines, where no type of the package says it already.

Nodes, features and graphs have the ids that they have everywhere. Numbers that are not finite are null. The table of commands
is in schemas.py, which tests and the documentation read; commands need none of it.
"""
