"""The families of models that people use, tiny: what works with each, found out by running it."""
