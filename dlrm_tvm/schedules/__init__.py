"""What suits a machine: tiles, blocks and prefetching of each kernel.

in:    the CPU, a tuning log, the shapes of a model's layers.
out:   schedules, and machine code of a kernel that is tried.
first: rules.py
"""
