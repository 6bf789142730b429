"""The nodes of a Ray cluster: the same measurement on all of them at once, and the shards of a job spread over them.

in:    a cluster's address; a run's settings, or a job.
out:   what each node measured, and the sum; which shards are done.
first: measure.py
"""
