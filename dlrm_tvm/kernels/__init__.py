"""Our own TIR: the whole network as one function, for each precision.

in:    a `NetworkPlan` and packed weights.
out:   PrimFuncs, and the loops that measure the hardware.
first: network.py
"""
