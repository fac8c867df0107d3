"""What a run has passed: which modules ran, how often, and in what order.

A run puts no counter on a module that nobody named. So the first run of a model counts every
module once and leaves a `Survey`; later runs count only the modules that ran more than once in it.
For the others, the order of that run tells what a later one has passed; a run that comes by in
another order makes the next one count again. The survey also tells a module that was passed from
one that is never called.

A method such as `generate` calls the model again and again: each of these calls is a step. What is
surveyed then is one step, and the modules counted later are those that do not run once in each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch.nn import Module

from nnsight.envoy.layout import is_container
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location


@dataclass(frozen=True)
class Survey:
    """What one whole run of a model was seen to do. Holds no module alive."""

    called: WeakKeyDictionary[Module, int]  # how often each module ran
    often: tuple[ref[Module], ...]  # the modules that ran more than once, or not at all
    known: WeakSet[Module]  # every module there was
    order: WeakKeyDictionary[Module, tuple[int, int]]  # when each first started, and finished
    compiled: bool  # whether some module is compiled, and must run eagerly to be traced
    clock: ref[Module] | None = None  # the module whose calls are the steps of the run

    @property
    def repeated(self) -> list[Module]:
        """Modules that ran several times in one run: their visits are counted from the start."""
        return [module for each in self.often if (module := each()) is not None]


class Lineage:
    """Which modules may be running when one is called: all above it. Holds no module alive."""

    def __init__(self, root: Module) -> None:
        self._parents: WeakKeyDictionary[Module, WeakSet[Module]] = WeakKeyDictionary()
        self._above: WeakKeyDictionary[Module, tuple[ref[Module], ...]] = WeakKeyDictionary()
        self._parents[root] = WeakSet()
        for module in root.modules():
            for child in module._modules.values():
                if child is not None:  # several parents, if it is shared
                    self._parents.setdefault(child, WeakSet()).add(module)

    def above(self, module: Module) -> list[Module] | None:
        """Every module above `module`, the nearest first; None for a module that was not there."""
        known = self._above.get(module)
        if known is None:
            if module not in self._parents:
                return None
            known = self._above[module] = tuple(map(ref, self._walk(module)))
        return [parent for each in known if (parent := each()) is not None]

    def _walk(self, module: Module) -> list[Module]:
        found = [module]
        for below in found:  # which grows meanwhile
            found += [m for m in self._parents.get(below, ()) if m not in found]
        return found[1:]


def is_compiled(module: Module) -> bool:
    """Whether calling `module` runs code of `torch.compile` instead of its forward."""
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"


def module_of(location: Location) -> Module | None:
    """The module whose call brings the value at a location; None for a value that is offered."""
    if location.kind not in (OUTPUT, INPUT, SKIP):
        return None
    return vars(location.owner).get("_module")


class Passage:
    """The calls of one run, as far as they are counted."""

    def __init__(
        self,
        survey: Survey | None,
        above: Callable[[Module], list[Module]],
        locate: Callable[[Module], Any],
        clock: Module | None = None,
        stepwise: bool = False,
    ) -> None:
        self.survey = survey
        self.clock = clock  # the module whose calls are the steps; None if the run is one call
        self._seeking = stepwise and survey is None  # that module may turn out to be another
        self.started: defaultdict[Module, int] = defaultdict(int)
        self.finished: defaultdict[Module, int] = defaultdict(int)
        self.everything = survey is None  # whether every module is counted, from the start
        self.early: set[Location] = set()  # asked for before the run had passed anything
        self.skipped: set[Module] = set()
        self.order: dict[tuple[Module, bool], int] = {}  # when each first started, and finished
        self.counted: set[Module] = set()
        self.doubtful = False  # this run does not go as the survey says
        self._now = 0  # how far it has come, as the survey tells the time
        self._above = above  # the modules above one
        self._locate = locate  # the owner of a module's locations
        self._marks: dict[Module, Location] = {}  # the input of modules, where a step may begin
        self._running: list[Module] = []
        self._uneven: set[Module] = set()  # modules that did not run once in each step
        self._often: set[Module] = set()  # and those that ran more than once in one

    def before(self, location: Location) -> int:
        """How often the run came by `location` before anyone asked for it."""
        module = module_of(location)
        if module is None:
            return 0
        return self._before(module, location.kind)

    def _before(self, module: Module, kind: str) -> int:
        if self.everything or module in self.counted:
            counted = self.finished if kind == OUTPUT else self.started
            return counted.get(module, 0)
        steps, under_way = self._steps_done()
        time = self._time(module, kind) if under_way else None
        if time is None or time >= self._now or not self.skipped.isdisjoint(self._above(module)):
            return steps
        self.doubtful = True  # told by an earlier run only: the next run counts for itself
        return steps + 1

    def _steps_done(self) -> tuple[int, bool]:
        """How many steps are over, and whether another is under way."""
        if self.clock is None:
            return 0, True
        done = self.finished.get(self.clock, 0)
        return done, self.started.get(self.clock, 0) > done

    def _time(self, module: Module, kind: str) -> int | None:
        """When the surveyed run first came by there."""
        if self.survey is None or module not in self.survey.order:
            return None
        start, finish = self.survey.order[module]
        return finish if kind == OUTPUT else start + (kind == SKIP)

    def count_from_here(self, module: Module) -> bool:
        """From now on `module` is counted; False if it is already."""
        if self.everything or module in self.counted:
            return False
        self.started[module] = self._before(module, INPUT)
        self.finished[module] = self._before(module, OUTPUT)
        self.counted.add(module)
        return True

    # --- steps ------------------------------------------------------------------------------------

    def step(self) -> int:
        """Which step the run is at: how often it has called the model, from 0."""
        return max(self.started.get(self.clock, 0) - 1, 0) if self.clock is not None else 0

    def runs_often(self, location: Location) -> bool:
        """Whether a step comes by `location` more than once, as far as this run has seen."""
        return module_of(location) in self._often

    @property
    def stepwise(self) -> bool:
        """Whether the run has steps of its own: calls of the model, one after the other."""
        return self.clock is not None

    def marks(
        self, asked: Collection[Location], named: Callable[[str], bool]
    ) -> Collection[Location]:
        """Further places that begin steps, for a loop that has `asked` for these.

        Of modules that run in a rhythm of their own, those count that the loop has asked for, and
        what is above them; if it has asked for nothing yet, those that its block names.
        """
        outside = [a for a in asked if getattr(type(a.owner), "after_the_last", False)]
        if asked and len(outside) == len(asked):
            return outside
        modules = {m: None for a in asked if (m := module_of(a)) is not None}
        if self.clock is None:
            modules |= {m: None for inner in list(modules) for m in self._above(inner)}
        if not asked:
            ours = [m for m in self.counted if named(self._name(m))]
            modules = dict.fromkeys(ours or (self.counted if self.clock is None else ()))
        odd = [m for m in modules if not is_container(m) and (self.everything or m in self.counted)]
        own = [a for a in asked if module_of(a) is None and a not in outside]
        return [*map(self._mark, odd), *own]

    def _name(self, module: Module) -> str:
        """The last name on the way to a module: what a block says that asks for it."""
        path = [part for part in self._locate(module).path.split(".") if not part.isdecimal()]
        return path[-1] if path else ""

    @property
    def beat(self) -> Location | None:
        """Where each step begins, if the model is called step by step."""
        return None if self.clock is None else self._mark(self.clock)

    def _mark(self, module: Module) -> Location:
        if module not in self._marks:
            self._marks[module] = Location(self._locate(module), INPUT)
        return self._marks[module]

    # --- counting, as the hooks of a run tell -----------------------------------------------------

    def start(self, module: Module) -> bool:
        """`module` is called. Returns whether it turns out to be the one whose calls are steps."""
        self.started[module] += 1
        self.order.setdefault((module, True), len(self.order))
        clock = self.clock
        if clock is None:
            return False
        found = self._seeking and self._makes_steps(module)
        if found:
            self.clock = clock = module
        if module is clock:
            self._now = 0
        elif self.started[module] != self.started[clock]:
            self._uneven.add(module)
            if self.started[module] > self.started[clock]:
                self._often.add(module)
        return found

    def _makes_steps(self, module: Module) -> bool:
        """Whether `module`, which is called, is called by no other, and more often than the rest.

        An adapter may generate with the model inside it; an encoder is called once, on its own.
        """
        outermost = not self._running
        self._running.append(module)
        return outermost and self.started[module] > self.started[self.clock]  # type: ignore[index]

    def finish(self, module: Module) -> None:
        """A call of `module` has returned."""
        self.finished[module] += 1
        self.order.setdefault((module, False), len(self.order))
        if self._seeking and module in self._running:
            del self._running[self._running.index(module) :]

    def at(self, location: Location, visit: int) -> None:
        """The run itself comes by `location`, for the n-th time."""
        module = module_of(location)
        time = None if module is None else self._time(module, location.kind)
        if time is None:
            return
        if visit == self._steps_done()[0]:
            self.doubtful |= time < self._now
            self._now = max(self._now, time)
        elif module not in self.counted:
            self.doubtful = True  # twice, or after it was taken for passed

    def story(self, location: Location) -> str:
        """What the run did there.

        `"passed"` if it has been there, `"never"` if the module was not called, `"unreached"` if it
        was, but an operation in it was not run; else `""`.
        """
        module = module_of(location)
        if module is None:
            if "_module" in vars(location.owner):  # a value that the model's own code offers
                return ""
            around = vars(location.owner).get("within")  # of an operation: its module
            inside = "passed" if around is None else self.story(Location(around, INPUT))
            return "unreached" if inside == "passed" and around is not None else inside
        if self.everything:
            return "passed" if module in self.started else "never"
        assert self.survey is not None
        if location in self.early or not self.skipped.isdisjoint(self._above(module)):
            return "never"
        if module not in self.survey.known:
            return ""
        return "passed" if module in self.survey.called else "never"

    def conclude(self, modules: Iterable[Module]) -> Survey:
        """What this run, which counted everything, tells the later ones."""
        modules = list(modules)
        return Survey(
            called=WeakKeyDictionary(self.started),
            often=tuple(ref(module) for module in modules if self._is_worth_counting(module)),
            known=WeakSet(modules),
            order=WeakKeyDictionary(
                {
                    module: (2 * start, 2 * self.order[module, False])
                    for (module, starts), start in self.order.items()
                    if starts and (module, False) in self.order
                }
            ),
            compiled=any(map(is_compiled, modules)),
            clock=None if self.clock is None else ref(self.clock),
        )

    def _is_worth_counting(self, module: Module) -> bool:
        """Whether a later run may come by `module` more often than once in a step, or not at all.

        As far as can be told; and the module whose calls are the steps.
        """
        if is_container(module) and module not in self.started:
            return False
        steps = 1 if self.clock is None else self.started.get(self.clock, 0)
        return (
            module is self.clock or module in self._uneven or self.started.get(module, 0) != steps
        )


def eager() -> Callable[[], None]:
    """Run compiled modules eagerly until the returned function is called."""
    stance: Any = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)
