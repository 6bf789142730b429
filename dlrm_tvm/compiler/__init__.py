"""`Dlrm` -> verified library on disk.

in:    settings (the flags of compile.py), a reader of ONNX files or a model, a tuning log.
out:   `NAME_bN.so`, `.params` and `.json`.
first: pipeline.py
"""
