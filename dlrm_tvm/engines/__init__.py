"""Other inference engines on the ONNX file that a library was compiled from.

in:    an `EngineGraph`: file, engine, precision, batch size.
out:   an opened engine, which a worker runs in place of our executor.
first: interface.py
"""
