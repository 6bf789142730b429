"""A DLRM as data, the numbers it is computed in, and its predictions in plain NumPy.

in:    shapes, weights and a precision.
out:   `Dlrm`, `Numerics`, reference predictions, cards.
first: dlrm.py
"""
