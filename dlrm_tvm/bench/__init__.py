"""One measured run: cores chosen, weights placed, peak, window, warnings, report.

in:    `RunSettings`.
out:   a `RunReport`, as text and as JSON.
first: session.py
"""
