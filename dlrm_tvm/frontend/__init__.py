"""What a graph computes -> `Dlrm`.

in:    an ONNX file, run on symbols.
out:   a `Dlrm`, or a refusal that names the node.
first: reader.py
"""
