"""Our own TIR: instructions, words, layers and lookups, on vectors and on tiles; the loops that measure the hardware.

in:    shapes, schedules, buffers.
out:   statements in the function that is being emitted.
first: dense.py
"""
