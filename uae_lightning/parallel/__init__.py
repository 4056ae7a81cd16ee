"""Several devices: what ranks exchange, how weights are sharded (FSDP2), and how all of them end together.

Without a process group every function here is the identity: a stage on one device does exactly what it would without.
"""
