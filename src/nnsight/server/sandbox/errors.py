"""What can go wrong between a sandbox and the model, and the texts that say so."""

from __future__ import annotations

from nnsight.remote.errors import NotSendableError


class Gone(ConnectionError):
    """The process at the other end has ended, or its time is over."""


class Broken(ValueError):
    """The sandbox sent what no sandbox of ours sends."""


class InBlock(Exception):
    """Stands for the error of a block, while the model is left."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the block {index} failed")
        self.index = index


class InDue(Exception):
    """Stands for what is raised at the line that asked for a value, and went on without it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"what was due is not there ({number})")
        self.number = number


class Unmet(Exception):
    """Stands for what a block makes of it that it waited in vain."""


class SandboxError(RuntimeError):
    """A sandbox cannot do what a block asks for."""


_TRUSTED = (
    "A trusted key (`nnsight serve keys add NAME --trusted`) runs it beside the model itself."
)


def no_second_gradients(what: str) -> SandboxError:
    return SandboxError(
        f"`{what}` would go backward through a backward pass, and a sandbox cannot: this key is "
        f"not trusted, so its block runs in a process without the weights. {_TRUSTED}"
    )


def earlier_graph() -> SandboxError:
    return SandboxError(
        "this loss was computed from values of an earlier trace, whose graph a sandbox has let go "
        "of. Go backward before the next trace begins, for each loss by itself: gradients of "
        f"leaves add up. {_TRUSTED}"
    )


def weights_are_fixed(place: str) -> SandboxError:
    return SandboxError(
        f"`{place}` belongs to the model, and this key may not change it. Assign the values that "
        "the module gives (`.output = ...`), or compute with a copy (`.clone()`)."
    )


def changes_model(place: str) -> SandboxError:
    return SandboxError(
        f"the block changes the model itself (at `{place}`), which a key that is not trusted may "
        f"not; nothing of it has been in force. Assign values (`.output = ...`) instead. {_TRUSTED}"
    )


def only_data(what: str) -> NotSendableError:
    return NotSendableError(
        f"{what} cannot go from a sandbox to the model: this key is not trusted, and only tensors, "
        f"numbers, text and containers of them pass. {_TRUSTED}"
    )


def no_numbers() -> NotSendableError:
    return only_data("a tensor without numbers (on the meta device)")


def no_such_run(fn: object) -> NotSendableError:
    return NotSendableError(
        f"a key that is not trusted runs the model's forward or a method such as `generate`, not "
        f"{fn!r}. {_TRUSTED}"
    )


def no_option(name: str) -> NotSendableError:
    return NotSendableError(
        f"`{name}=` may make the model run code, so it is not taken from a key that is not "
        f"trusted. {_TRUSTED}"
    )


def no_function_there(path: str) -> SandboxError:
    return SandboxError(
        f"which function `{path}` calls shows only while the model runs, and a sandbox cannot see "
        f"it. {_TRUSTED}"
    )


def opaque(kind: str) -> SandboxError:
    return SandboxError(
        f"this value is a `{kind}` of the model's process: a sandbox can hand it back, and nothing "
        f"else. {_TRUSTED}"
    )


def passed_limit(size: int, limit: int) -> Broken:
    return Broken(f"a message of {size} bytes, and {limit} is the most")
