"""Many runs: every combination of the axes, in random order, resumable.

in:    a specification such as "engine=ours,openvino;batch=16,100".
out:   tables of combinations and of engines side by side, the best, files of state and result.
first: run.py
"""
