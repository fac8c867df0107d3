"""A module of the user's own, with state."""

SCALE = 2.0
STATE = {"n": 0}


class Config:
    def __init__(self, width: int) -> None:
        self.width = width


def scale(value):
    STATE["n"] += 1
    return value * SCALE


def count() -> int:
    return STATE["n"]
