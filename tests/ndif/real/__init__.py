"""NDIF's own server, started here, and our client against it: see `__main__.py`."""
