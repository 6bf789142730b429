"""An ONNX graph run on symbols: what each element of its output is, as a formula over the inputs and weights.

in:    an ONNX file of any exporter.
out:   `Expressions`, `Lookups` and functions of one index, or a refusal that names the node.
first: interpreter.py
"""
