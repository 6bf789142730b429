"""The computer: cores, caches, memory, NUMA nodes, files, and what the operating system counts.

in:    psutil; /proc, /sys, cgroups and system calls where it knows nothing.
out:   `Topology`, chosen cores, shared memory, counters.
first: topology.py
"""
