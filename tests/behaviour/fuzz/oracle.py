"""What a program must do, worked out without nnsight: generators resumed from plain hooks.

Every module has hooks from the start and a `forward` that asks whether to run; a block is a
generator that yields what it asks for. No thread, no hook that comes late, nothing remembered from
run to run: slow and simple. The rules are those of the specification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import torch
from tests.behaviour.fuzz import rows
from tests.behaviour.fuzz.blocks import Block, Key, Swallowed, Visit
from tests.behaviour.fuzz.shared import Shared
from torch import nn

from nnsight.interleave.errors import (
    Cancelled,
    MissedProviderError,
    OutOfOrderError,
    OutsideTraceError,
    Stop,
)

PATIENCE = 10_000
_abandoned: list[Any] = []


class Oracle(Shared):
    """One run of one program."""

    def __init__(
        self, model: nn.Module, total: int, split: bool, nested: Callable[[], Any]
    ) -> None:
        super().__init__()
        self.model, self.total, self.split, self.nested = model, total, split, nested
        self.visits: Counter[Key] = Counter()
        self.asked: set[Key] = set()
        self.visit: Visit | None = None
        self.on = True
        self.over = self.stopping = False
        self.failure: BaseException | None = None
        self.cuts: list[rows.Cut] = []
        self.outcome: Any = None  # what the model returned, with what blocks did to it
        self.away: list[int] = []  # blocks that skip what is running
        self.unseen: dict[Key, set[int]] = {}  # those that were away at every visit

    # --- the run ----------------------------------------------------------------------------------

    def run(self, x: torch.Tensor) -> None:
        undo = self._watch_everything()
        try:
            for block in self.blocks:
                block.begun = True
                self.turn(block, None)
                if self.stopping:
                    break
            while self.release():
                pass
            if self.stopping:
                raise Stop
            self.outcome = self.offer((None, "result"), self.model(x))
            self.finish()
        except Stop:
            self.cancel()
        except BaseException:
            self.cancel()
            raise
        finally:
            for each in undo:
                each()

    def _watch_everything(self) -> list[Callable[[], Any]]:
        undo: list[Callable[[], Any]] = []
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList):
                continue
            before = module.register_forward_pre_hook(self._before, with_kwargs=True)
            undo += [before.remove, module.register_forward_hook(self._after).remove]
            module.forward = self._gate(module, module.forward)  # type: ignore[method-assign]
            undo.append(lambda module=module: vars(module).pop("forward"))
        return undo

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return self.offer((module, "input"), (args, kwargs)) if self.on else None

    def _after(self, module: nn.Module, args: Any, result: Any) -> Any:
        return self.offer((module, "output"), result) if self.on else None

    def _gate(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return forward(*args, **kwargs)
            skips = self.offer_visit((module, "skip"), None).skips
            if not skips:
                return forward(*args, **kwargs)
            given = list(skips.values())  # in the order in which they were asked for
            whole = [n for n, (block, _) in enumerate(given) if not self._narrows(block)]
            if whole:  # and after it, what blocks give for rows of their own
                result = given[whole[-1]][1]
                for block, value in given[whole[-1] + 1 :]:
                    result = self.put(result, block, value)
                return result
            parts = sorted(given, key=lambda pair: pair[0].rows.start)  # type: ignore
            if sum(block.rows.stop - block.rows.start for block, _ in parts) == self.total:  # type: ignore
                return rows.joined([value for _, value in parts])
            self.away += [block.index for block, _ in parts]  # what runs now is nothing to them
            try:
                result = forward(*args, **kwargs)
            finally:
                del self.away[len(self.away) - len(parts) :]
            for block, value in parts:
                result = self.put(result, block, value)
            return result

        return gated

    # --- rows -------------------------------------------------------------------------------------

    def _narrows(self, block: Block) -> bool:
        return self.split and block.rows is not None

    def narrow(self, value: Any, block: Block) -> Any:
        return rows.narrow(value, block.rows, self.total) if self._narrows(block) else value

    def put(self, full: Any, block: Block, new: Any) -> Any:
        if self._narrows(block):
            return rows.put(full, block.rows, new, self.total, self.cuts)
        rows.check_size(full, new, self.total)
        return new

    # --- visits -----------------------------------------------------------------------------------

    def offer(self, key: Key, value: Any) -> Any:
        return self.offer_visit(key, value).value

    def offer_visit(self, key: Key, value: Any) -> Visit:
        visit = Visit(key, self.visits[key], value)
        if (
            key not in self.asked
        ):  # blocks that are free to go on do so at the next place of interest
            self.visits[key] += 1
            return visit
        away = set(self.away)
        self.unseen[key] = away & (self.unseen.get(key, set()) if visit.number else away)
        outer, self.visit = self.visit, visit
        try:
            while self._answer_all(visit) or self.release():
                pass
        finally:
            self.visit = outer
            self.visits[key] = visit.number + 1
        if self.stopping:
            raise Stop
        return visit

    def _answer_all(self, visit: Visit) -> bool:
        found = False
        for block in [each for each in self.blocks if each.index not in self.away]:
            while block.request is not None and self._is_for(block.request, visit):
                found = True
                request, block.request = block.request, None
                try:
                    answer = self.serve(block, request, visit)
                except Exception as error:
                    self.turn(block, error)
                else:
                    self.turn(block, answer)
        return found

    def _is_for(self, request: tuple[Any, ...], visit: Visit) -> bool:
        return request[0] != "wait" and request[1] == visit.key and visit.number == 0

    def serve(self, block: Block, request: tuple[Any, ...], visit: Visit) -> Any:
        verb = request[0]
        if verb == "read":
            own, whole = visit.own.get(block.index, (None, None))
            if whole is None or whole is not visit.value:
                own = self.narrow(visit.value, block)
                if self._narrows(block) and rows.members(own):
                    visit.own[block.index] = own, visit.value
            return own
        if verb == "write":
            visit.value = self.put(visit.value, block, request[2])
            if self._narrows(block) and rows.members(request[2]):
                visit.own[block.index] = request[2], visit.value
        else:
            visit.skips.pop(block.index, None)
            visit.skips[block.index] = block, request[2]
        return None

    def _take_changes(self, block: Block) -> None:
        visit = self.visit
        if visit is not None and block.index in visit.own:
            own, whole = visit.own[block.index]
            if whole is visit.value:
                visit.value = self.put(whole, block, own)
                visit.own[block.index] = own, visit.value

    def release(self) -> bool:
        found = False
        for block in self.blocks:
            if block.request is not None and block.request[0] == "wait" and block.request[1]():
                found = True
                block.request = None
                self.turn(block, None)
        return found

    # --- a block's turn ---------------------------------------------------------------------------

    def turn(self, block: Block, answer: Any) -> None:
        before = rows.changes(self.cuts)
        self.advance(block, answer)
        rows.agree(before, block.rows if self._narrows(block) else None, self.total)
        del before  # what the model holds no longer must not be held here
        if block.error is not None:
            self.failure, block.error = block.error, None
            raise self.failure
        if block.stopped:
            self.stopping = True
        self._take_changes(block)

    def advance(self, block: Block, answer: Any) -> None:
        """Let a block run until it waits or ends."""
        try:
            while True:
                if isinstance(answer, BaseException):
                    request = block.generator.throw(answer)
                else:
                    request = block.generator.send(answer)
                try:
                    waits, answer = self.take(block, request)
                except Swallowed:
                    self._abandon(block)
                    return
                except BaseException as error:
                    waits, answer = False, error
                if waits:
                    return
        except StopIteration:
            pass
        except Stop:
            block.stopped = True
        except Cancelled:
            pass
        except BaseException as error:
            block.error = error
        block.ended = True

    def _abandon(self, block: Block) -> None:
        block.ended, block.error = True, Swallowed()
        _abandoned.append(block.generator)  # closing it would run its `except` once more

    def take(self, block: Block, request: tuple[Any, ...]) -> tuple[bool, Any]:
        """Whether the block has to wait for what it asks for, else the answer."""
        verb, *given = request
        if verb in ("read", "write"):
            return self._expect(block, request)
        if verb == "skip":
            return self._expect(block, ("skip", (self._module(given[0]), "skip"), given[1]))
        if verb == "wait":
            block.request = request
            return True, None
        if verb == "call":
            return False, self._call(*given)
        if verb == "bind":
            self.names[self._cell(block, given[0])] = given[1]
        elif verb == "save":
            block.saved[given[0]] = given[1]
        elif verb == "stop":
            raise Stop
        elif verb == "foreign":
            raise OutsideTraceError
        elif verb == "nested":
            return False, self.nested()
        return False, None

    def _module(self, path: str | None) -> Any:
        return None if path is None else self.model.get_submodule(path)

    def get(self, path: str | None, kind: str) -> Generator[Any, Any, Any]:
        value = yield "read", (self._module(path), "input" if kind == "inputs" else kind)
        if kind != "input":
            return value
        args, kwargs = value
        return args[0] if args else next(iter(kwargs.values()))

    def set(self, path: str | None, kind: str, value: Any) -> Generator[Any, Any, None]:
        if value is None:
            raise ValueError
        if kind == "input":
            args, kwargs = yield from self.get(path, "inputs")
            if args:
                value = (value, *args[1:]), kwargs
            else:
                value = args, {**kwargs, next(iter(kwargs)): value}
        yield "write", (self._module(path), kind), value

    def _expect(self, block: Block, request: tuple[Any, ...]) -> tuple[bool, Any]:
        if self.over and self.stopping and request[1] not in self.asked:
            block.request = request  # nobody looks any more whether the model has passed it
            return True, None
        self.asked.add(request[1])
        if request[1][1] == "input":
            self.asked.add((request[1][0], "skip"))
        away = block.index in self.away
        if self.visit is not None and self._is_for(request, self.visit) and not away:
            return False, self.serve(block, request, self.visit)
        if self.visits[request[1]] and block.index not in self.unseen.get(request[1], ()):
            if self.over and request[:2] == ("read", (None, "result")):
                return False, self.narrow(self.outcome, block)
            block.refusals += 1
            if block.refusals > PATIENCE:
                raise Swallowed
            raise OutOfOrderError
        block.request = request
        return True, None

    def _call(self, path: str, value: Any, observed: bool) -> Any:
        before, self.on = self.on, observed
        try:
            return self._module(path)(value)
        finally:
            self.on = before

    # --- ends -------------------------------------------------------------------------------------

    def finish(self) -> None:
        self.over = True
        if self.failure is not None:
            raise self.failure
        while waiting := [block for block in self.blocks if block.request is not None]:
            block = min(waiting, key=lambda b: b.request is not None and b.request[0] == "wait")
            assert block.request is not None
            waits = block.request[0] == "wait"
            self.refuse(block, block.request[2]() if waits else MissedProviderError())
            while self.release():
                pass

    def refuse(self, block: Block, error: BaseException) -> None:
        block.refusals += 1
        block.request = None
        if block.refusals > PATIENCE:
            self._abandon(block)
            assert block.error is not None
            raise block.error
        self.turn(block, error)

    def cancel(self) -> None:
        self.over = True
        for block in self.blocks:
            while block.begun and not block.ended:
                block.refusals += 1
                block.request = None
                if block.refusals > PATIENCE:
                    self._abandon(block)
                else:
                    self.advance(block, Cancelled())
