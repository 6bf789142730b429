"""Processes of one executor each, pinned to cores, that start together and are timed together.

in:    an `Assignment` for each.
out:   when each batch ended, the kernel's counters, peaks.
first: group.py
"""
