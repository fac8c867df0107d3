"""Code of a user who is not trusted: a process without weights, that trades values as data.

`guest.py` is that process: it holds the model's skeleton, reads the request and runs its blocks.
`host.py` is the model's side: it runs the model, with a proxy for each block that asks for what the
block asks for. `process.py` starts guests, and `confine.py` takes from them what they do not need.
"""
