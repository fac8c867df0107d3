"""What can go wrong on the way to a server and back, and the texts that say so."""

from __future__ import annotations


class RemoteError(Exception):
    """A block did not run on a server, or failed there."""


class PayloadError(RemoteError):
    """What came over the wire cannot be read."""


class NotSendableError(RemoteError, TypeError):
    """A block uses something that cannot leave this process."""


def damaged(how: str) -> PayloadError:
    """Bytes that are no message, or not a whole one."""
    return PayloadError(f"This message cannot be read: {how}.")


def too_large(largest: int) -> PayloadError:
    """More than whoever reads it takes."""
    return PayloadError(f"This message is too large: it unfolds to more than {largest >> 20} MiB.")


def other_model(path: str, traced: str) -> NotSendableError:
    """A block names a model that it does not run beside."""
    return NotSendableError(
        f"this block uses `{path}`, a part of another model than the one that it runs on "
        f"(`{traced}`): a server runs one model for a request. Run two traces, and hand values "
        "from one to the other."
    )


def only_changed_here(name: str, kind: str, filename: str, lineno: int) -> NotSendableError:
    """A container from outside that a block fills, and would fill a copy of."""
    return NotSendableError(
        f"{filename}, line {lineno}: `{name}` is a {kind} from outside of this block. The block "
        f"runs in another process, on a copy of it, so yours would stay as it is. Save it in the "
        f"block, `{name}.save()`, and it comes back; or make it in the block."
    )


def not_a_trace(kind: str) -> NotSendableError:
    """A kind of block that has no meaning in another process."""
    return NotSendableError(
        f"a `{kind}` cannot be sent: `model.trace`, `generate`, `scan` and `session` can."
    )
