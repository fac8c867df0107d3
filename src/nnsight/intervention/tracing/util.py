"""Old address of the class that errors of blocks were wrapped in.

They come out as what they are now, so `except ExceptionWrapper` catches any of them.
"""

ExceptionWrapper = Exception

__all__ = ["ExceptionWrapper"]
