"""Inputs and their references: npz, Criteo, the demo, random items; errors, AUC, log loss. Models as ONNX files: the
demo, PyTorch's weights.

in:    files of items or of weights, or a seed.
out:   chunks of items, a `Verdict`; an ONNX file.
first: reference_data.py
"""
