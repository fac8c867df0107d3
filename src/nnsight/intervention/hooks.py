"""Old address of decorators that said what an `eproperty` needs: every value can be had now."""

from typing import TypeVar

__all__ = [
    "requires_input",
    "requires_operation_input",
    "requires_operation_output",
    "requires_output",
]

T = TypeVar("T")


def requires_output(function: T) -> T:
    """Nothing to do: returns the function as it is."""
    return function


requires_input = requires_operation_input = requires_operation_output = requires_output
