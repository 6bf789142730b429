"""What a library predicts for all items of some files, kept: in shards, each item exactly once, to be gone on with.

in:    a library, files of items.
out:   a folder of parts or one npz, and the figures over all items.
first: run.py
"""
