"""A seeded fuzz test of everything that reads files: damaged, hostile and merely wrong ones.

`readers` is the table of readers with a valid miniature each; `mutations` what is done to its files; `outcomes` what may come
of that: a CircuitTracerError, what was loaded before, or something else that is itself valid. `python -m tests.fuzz` runs many.
"""
