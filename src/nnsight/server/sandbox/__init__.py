"""Code of a user who is not trusted: a process without weights, that trades values as data.

The process (`guest.py`) holds the model's skeleton, reads the request and runs its blocks; the
model's side (`host.py`) answers. Each file on one side has one on the other:

    guest.py         host.py        asking, and answering
    conversation.py  hosted.py      a run of the model, and whose turn it is
    seen.py          hosted.py      what a block sees of that run
    taken.py         given.py       values, and what was done to them in place
    graph.py         mirrored.py    what autograd has recorded, and passes backward through it

`process.py` starts guests, and `confine.py` takes from them what they do not need.
"""
