"""Random programs of every verb, beside models whose right values come from plain PyTorch.

`program.py` has what a program can say, as data that prints as the Python a user would write;
`writer.py` writes random ones; `expected.py` works out what one must do, one input at a time and
without nnsight, from blocks that `sim.py` runs beside the plain model; `check.py` compares, and
`shrink.py` makes a program that goes wrong as short as it can be.
"""
