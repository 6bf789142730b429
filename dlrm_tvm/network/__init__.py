"""The whole network as one function for each precision, made of the kernels: a block of items through all layers.

in:    a `NetworkPlan` and packed weights.
out:   PrimFuncs.
first: functions.py
"""
