"""Old address of the interleaver, and of the errors that were named on `Mediator`."""

from nnsight.interleave import errors
from nnsight.interleave.eproperty import eproperty
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.worker import Worker

__all__ = ["Interleaver", "Mediator", "eproperty"]


class Mediator(Worker):
    """An old name of a worker: for `except Mediator.OutOfOrderError`."""

    MissedProviderError = errors.MissedProviderError
    OutOfOrderError = errors.OutOfOrderError
