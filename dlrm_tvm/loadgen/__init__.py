"""The same instances driven by MLPerf's LoadGen.

in:    a scenario and its settings.
out:   LoadGen's logs and verdict, and a report.
first: run.py
"""
