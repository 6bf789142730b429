"""ONNX graph -> `Dlrm`, by what the graph computes.

in:    an ONNX file of any exporter.
out:   a `Dlrm`, or a refusal that names the node.
first: reader.py
"""
