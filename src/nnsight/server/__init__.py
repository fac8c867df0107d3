"""A server on one machine: `python -m nnsight serve MODEL`. Blocks of others run beside its models.

Every state of a job is a row of a log (`store.py`), and every channel to a client only reads that
log from a cursor (`streams.py`), so a client that comes back misses nothing. Jobs of one model run
in turn (`dispatch.py`), in a process of its own that can be killed at any time (`engine.py`,
`worker.py`). Nothing here imports torch but what runs in that process.
"""
