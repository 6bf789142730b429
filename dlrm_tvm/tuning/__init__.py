"""The search for schedules on this machine.

in:    a model, a batch size, a target CPU, numerics.
out:   lines of the tuning log.
first: search.py
"""
