"""A compiled library opened and run: manifest, parameters, tables in place, threads.

in:    `NAME.so` with its `.json` and `.params`.
out:   an `Executor`.
first: artifact.py
"""
