# ruff: noqa: E501 -- a mistake and what must be said of it stand on one line each
"""Mistakes that users make, as they write them, and what must be said of each.

The line that is to blame ends in `#!`. Every snippet is a file of its own and finds there `model`
(a wrapped `Net`), its input `x`, `other` (a second model), `torch`, `nn`, `np`, `nnsight`,
`NNsight` and the modules below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnsight import (
    BatchError,
    NeverCalledError,
    OutOfOrderError,
    OutsideTraceError,
    SourceNotAvailable,
    WithBlockNotFoundError,
)
from nnsight.capture.errors import NestedTraceError
from nnsight.interleave.errors import MissedProviderError
from nnsight.traces.errors import NotCachedError


class Layer(nn.Module):
    """A layer that returns a tuple, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.act(self.fc(x)), x


class Clock(nn.Module):
    """A module that is called without arguments."""

    def forward(self) -> torch.Tensor:
        return torch.ones(1)


class Net(nn.Module):
    """A model with a module that never runs and one on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.clock = Clock()
        self.extra = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, use_extra: bool = False) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h, _ = layer(h)
        h = h + self.clock()
        return self.head(self.extra(h) if use_extra else h)


class Picky(nn.Module):
    """A model whose second module fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = Fails()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("the model's own")


class Loose(nn.Module):
    """A model that takes any keyword and drops it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0, **kwargs: Any) -> torch.Tensor:
        return self.fc(x) * scale


def helper(model: Any) -> Any:
    """A user's function in another file."""
    return model.layers[0].output


@dataclass(frozen=True)
class Mistake:
    """One mistake and what must be said of it."""

    title: str
    code: str
    error: type[BaseException]
    says: str  # a pattern: where it happened, and what to write instead
    saved: str = ""  # names of values saved before the error
    warns: str = ""  # a pattern of the warning that comes first
    plain: bool = False  # an ordinary call: no block stands on the stack, so nothing can be hidden
    below: bool = False  # the user's own code goes on below the line: a model, another file

    def __str__(self) -> str:
        return self.title.replace(" ", "-")


def parse(text: str, **options: Any) -> Iterator[Mistake]:
    """Mistakes written as `=== title`, `error: pattern`, then the code.

    A line `saved: a b`, `warns: pattern`, `plain` or `below` may stand before the code.
    """
    for part in text.split("=== ")[1:]:
        title, told, *rest = part.splitlines()
        error, _, says = told.partition(": ")
        fields: dict[str, Any] = dict(options)
        while rest and (word := rest[0].partition(": ")[0]) in ("saved", "warns", "plain", "below"):
            fields[word] = rest.pop(0).partition(": ")[2] or True
        kind: Any = KINDS[error]
        yield Mistake(title, "\n".join(rest).strip("\n") + "\n", kind, says, **fields)


KINDS: dict[str, type[BaseException]] = {
    **{kind.__name__: kind for kind in (BatchError, NeverCalledError, OutOfOrderError)},
    **{kind.__name__: kind for kind in (OutsideTraceError, WithBlockNotFoundError)},
    **{kind.__name__: kind for kind in (NestedTraceError, MissedProviderError, NotCachedError)},
    **{kind.__name__: kind for kind in (KeyError, NameError, TypeError, ValueError, IndexError)},
    **{kind.__name__: kind for kind in (AttributeError, RuntimeError, SyntaxError, StopIteration)},
    **{kind.__name__: kind for kind in (ZeroDivisionError, KeyboardInterrupt, SystemExit)},
    **{kind.__name__: kind for kind in (NotImplementedError, FileNotFoundError)},
    "SourceNotAvailable": SourceNotAvailable,
}

ORDER = r"""
=== wrong order
OutOfOrderError: `model\.layers\.0\.output` .*ran past it \(it is at `model\.layers\.1\.output`.*move this line up
saved: b
with model.trace(x):
    b = (model.layers[1].output[0] * 2).save()
    a = (model.layers[0].output[0] * 2).save()  #!

=== wrong order in a loop
OutOfOrderError: `model\.layers\.1\.output` .*ran past it \(it is at `model\.layers\.2\.output`
with model.trace(x):
    states = [layer.output[0] * 2 for layer in reversed(list(model.layers))].save()  #!

=== wrong order in an invoke
OutOfOrderError: `model\.embed\.output` .*ran past it \(it is at `model\.head\.output`.*move this line up
saved: first second
with model.trace() as tracer:
    with tracer.invoke(x):
        first = model.embed.output.save()
    with tracer.invoke(x):
        second = model.head.output.mean(0).save()
        third = model.embed.output.save()  #!

=== wrong order in another file
OutOfOrderError: `model\.layers\.0\.output` .*ran past it
below
with model.trace(x):
    model.layers[1].output
    helper(model)  #!

=== input after output
OutOfOrderError: `model\.layers\.1\.input` .*\(it is at `model\.layers\.1\.output`.*move this line up
with model.trace(x):
    after = model.layers[1].output[0] + 1
    before = model.layers[1].input  #!

=== write after the visit
OutOfOrderError: `model\.layers\.0\.output` .*ran past it
with model.trace(x):
    last = model.layers[2].output
    model.layers[0].output = last  #!

=== anything after the result
OutOfOrderError: `model\.head\.output` .*\(it is at `result` now\)
saved: whole
with model.trace(x) as tracer:
    whole = tracer.result.save()
    head = (model.head.output + 0).save()  #!

=== skip of a module that has started
OutOfOrderError: `model\.layers\.1\.skip` .*\(it is at `model\.layers\.1\.fc\.output`
with model.trace(x):
    inner = model.layers[1].fc.output
    model.layers[1].skip((inner, inner))  #!

=== skip after output
OutOfOrderError: `model\.layers\.1\.skip` .*\(it is at `model\.layers\.1\.output`
saved: y
with model.trace(x):
    y = model.layers[1].output[0].save()
    model.layers[1].skip((x, x))  #!

=== a second visit of a module that is called once
OutOfOrderError: `model\.embed\.output` .*ran past it
with model.trace(x):
    model.head.output
    model.embed.output  #!

=== a module that never runs
NeverCalledError: `model\.unused\.output` .*never called in this run.*read one that runs
saved: y
with model.trace(x):
    y = model.embed.output.save()
    z = model.unused.output.save()  #!

=== a module on a branch that is not taken
NeverCalledError: `model\.extra\.output` .*never called.*branch that was not taken
with model.trace(x):
    z = model.extra.output.save()  #!

=== a branch that an earlier run took
NeverCalledError: `model\.extra\.output` .*never called.*branch that was not taken
with model.trace(x, use_extra=True):
    z = model.extra.output.save()
with model.trace(x):
    z = model.extra.output.save()  #!

=== inside a skipped module
NeverCalledError: `model\.layers\.1\.fc\.output` .*never called.*be skipped
with model.trace(x):
    model.layers[1].skip((x, x))
    y = model.layers[1].fc.output.save()  #!

=== inside a module that is skipped this time
NeverCalledError: `model\.layers\.1\.fc\.output` .*never called.*be skipped
with model.trace(x):
    pass
with model.trace(x):
    model.layers[1].skip((x, x))
    y = model.layers[1].fc.output.save()  #!

=== a list of modules
NeverCalledError: `model\.layers\.output` .*ModuleList.*`model\.layers\[0\]\.output`
with model.trace(x):
    y = model.layers.output.save()  #!

=== a block that catches every error
MissedProviderError: line 1 .*caught every error.*leave the loop
with model.trace(x):  #!
    while True:
        try:
            model.unused.output
        except BaseException:
            pass
"""

NAMES = r"""
=== a misspelt module
AttributeError: `model` \(Net\) has no .* 'layres'\. Did you mean `layers`\? Its modules: embed, layers
saved: y
with model.trace(x):
    y = model.embed.output.save()
    z = model.layres[0].output.save()  #!

=== a misspelt value
AttributeError: `model\.layers\.0` \(Layer\) has no .* 'ouput'\. Did you mean `output`
with model.trace(x):
    z = model.layers[0].ouput.save()  #!

=== a misspelt value that is written
AttributeError: `model\.embed` \(Linear\) has no .* 'outptu'\. Did you mean `output`
with model.trace(x):
    model.embed.outptu = torch.zeros(2, 4)  #!

=== a misspelt path
AttributeError: `model\.layers\.0` \(Layer\) has no .* 'fcc'\. Did you mean `fc`
with model.trace(x):
    z = model.get("layers.0.fcc.output").save()  #!

=== a misspelt method
AttributeError: `model` \(Net\) has no .* 'forwrd'\. Did you mean `forward`
with model.trace(x, fn="forwrd"):  #!
    z = model.output.save()

=== a misspelt member of the tracer
AttributeError: 'reslt'.*The tracer has `\.result`
with model.trace(x) as tracer:
    z = tracer.reslt.save()  #!

=== a value that was passed while the block waited for a name
OutOfOrderError: already ran past it.*had waited for the name 'y' of the block at .*, line \d+.*Read the value before the line
with model.trace() as tracer:
    with tracer.invoke(x):
        z = y + 1
        w = model.embed.output.save()  #!
    with tracer.invoke(x):
        y = model.layers[1].output[0]

=== an attribute that is nowhere, outside a trace
AttributeError: `model` \(Net\) has no .* 'heads'\. Did you mean `head`
plain
model.heads  #!

=== an index out of range
IndexError: `model\.layers` has 3 modules, so there is no element 7: .*`\[2\]`, or `\[-1\]`
with model.trace(x):
    z = model.layers[7].output.save()  #!

=== an index on a module for one on its value
TypeError: `model\.head` is a Linear without children.*`model\.head\.output\[0\]`
with model.trace(x):
    z = model.head[0].save()  #!

=== a forgotten save
NameError: 'hidden'
warns: saved nothing, so `hidden` will not exist after it.*`\.save\(\)`
plain
with model.trace(x):
    hidden = model.embed.output
print(hidden)  #!

=== a saved name that is bound again
NameError: 'hidden'
plain
with model.trace(x):
    hidden = model.embed.output.save()
    hidden = hidden + 1
print(hidden)  #!

=== a name that a sibling never binds
NameError: 'state' is not defined: .*from the block at .*line 2.*without binding it\. Bind it there
with model.trace() as tracer:
    with tracer.invoke(x):
        if x.sum() < 0:
            state = model.embed.output
    with tracer.invoke(x):
        model.embed.output = state  #!

=== names in a circle
NameError: 'a' can never be defined: .*line 5.*line 2.*Break the circle
with model.trace() as tracer:
    with tracer.invoke(x):
        model.embed.output = b
        a = model.head.output
    with tracer.invoke(x):
        model.embed.output = a  #!
        b = model.head.output
"""

WRITES = r"""
=== a replacement of another batch size
BatchError: `model\.embed\.output` does not fit: .*\[3, 4\].*\[2, 4\].*keeps the batch size
saved: before
with model.trace(x):
    before = model.embed.output.save()
    model.embed.output = torch.zeros(3, 4)  #!

=== a replacement of another batch size in an invoke
BatchError: `model\.embed\.output` does not fit: .*\[4, 4\].*this block's rows there are .*\[2, 4\]
with model.trace() as tracer:
    with tracer.invoke(x):
        model.embed.output = torch.zeros(4, 4)  #!
    with tracer.invoke(x):
        y = model.output.save()

=== one batch size too many in a tuple
BatchError: `model\.layers\.0\.output` does not fit: .*\[5, 4\].*\[2, 4\]
with model.trace(x):
    model.layers[0].output = (torch.zeros(2, 4), torch.zeros(5, 4))  #!

=== an input of another batch size
BatchError: `model\.head\.input` does not fit: .*\[1, 4\].*\[2, 4\]
with model.trace(x):
    model.head.input = torch.zeros(1, 4)  #!

=== a tensor for a tuple in an invoke
BatchError: `model\.layers\.0\.output` is a tensor .*but the value there is tuple of 2.*\(new, \*layer\.output\[1:\]\)
with model.trace() as tracer:
    with tracer.invoke(x):
        model.layers[0].output = torch.zeros(2, 4)  #!
    with tracer.invoke(x):
        y = model.output.save()

=== a tuple for a tensor in an invoke
BatchError: `model\.embed\.output` is tuple of 1, but the value there is a tensor.*take it out
with model.trace() as tracer:
    with tracer.invoke(x):
        model.embed.output = (torch.zeros(2, 4),)  #!
    with tracer.invoke(x):
        y = model.output.save()

=== a shorter tuple
BatchError: `model\.layers\.0\.output` is tuple of 1, but the value there is tuple of 2
with model.trace() as tracer:
    with tracer.invoke(x):
        model.layers[0].output = (torch.zeros(2, 4),)  #!
    with tracer.invoke(x):
        y = model.output.save()

=== another dtype beside other invokes
BatchError: `model\.embed\.output` is torch\.float64, but the value there is torch\.float32.*`new\.to\(
with model.trace() as tracer:
    with tracer.invoke(x):
        model.embed.output = model.embed.output.double()  #!
    with tracer.invoke(x):
        y = model.output.save()

=== an item of a tuple
TypeError: item assignment.*`layer\.output = \(new, \*layer\.output\[1:\]\)`
saved: y
with model.trace(x):
    y = model.embed.output.save()
    model.layers[0].output[0] = torch.zeros(2, 4)  #!

=== an item of a tuple in an invoke
TypeError: item assignment.*`layer\.output\[0\]\[:\] = new`
with model.trace() as tracer:
    with tracer.invoke(x):
        hidden = model.layers[0].output
        hidden[0] = torch.zeros(2, 4)  #!

=== two indices for a tuple
TypeError: tuple indices must be .*pick one before indexing it: .*`layer\.output\[0\]\[:, -1\]`
with model.trace(x):
    last = model.layers[0].output[:, -1]  #!

=== None for a value
ValueError: cannot replace `model\.embed\.output` with None.*`\.skip\(
with model.trace(x):
    model.embed.output = None  #!

=== inputs that are no pair
TypeError: `model\.head\.inputs` is `\(args, kwargs\)`.*cannot be set to a tensor.*assign `\.input`
with model.trace(x):
    model.head.inputs = torch.zeros(2, 4)  #!

=== the input of a module without arguments
ValueError: `model\.clock` was called without arguments.*`\.inputs` is `\(\(\), \{\}\)`
with model.trace(x):
    now = model.clock.input  #!

=== an edit that the model cannot use
RuntimeError: shapes cannot be multiplied.*replaced before this error: `model\.embed\.output`
below
with model.trace(x):  #!
    model.embed.output = torch.zeros(2, 7)
    y = model.output.save()

=== an input that the model cannot use
TypeError: must be Tensor, not NoneType.*replaced before this error: `model\.head\.input`
below
with model.trace(x):  #!
    model.head.input = None

=== an array for a tensor
TypeError: must be Tensor, not numpy.*replaced before this error: `model\.embed\.output`
below
with model.trace(x):  #!
    model.embed.output = np.zeros((2, 4), dtype="float32")

=== a skip that the model cannot use
TypeError: cannot unpack.*replaced before this error: `model\.layers\.1\.skip`
below
with model.trace(x):  #!
    model.layers[1].skip(None)

=== a module called on a wrong shape
RuntimeError: shapes cannot be multiplied
with model.trace(x):
    y = model.head(torch.zeros(2, 9))  #!
"""

EDITS = r"""
=== an error in an edit
KeyError: 'missing'
with model.edit() as edited:
    model.embed.output + {}["missing"]  #!
with edited.trace(x):
    y = model.output.save()

=== wrong order in an edit
OutOfOrderError: `model\.embed\.output` was requested but the model already ran past it
with model.edit() as edited:
    model.head.output
    model.embed.output  #!
with edited.trace(x):
    y = model.output.save()

=== a value of another model in an edit
OutsideTraceError: `model\.embed\.output` here: it belongs to another model
with model.edit() as edited:
    other.embed.output  #!
with edited.trace(x):
    y = model.output.save()

=== three names after the as of an edit
ValueError: `as \(a, b, c\)` does not fit an edit\. Write `with model\.edit\(\) as edited:`
with model.edit() as (a, b, c):  #!
    model.embed.output

=== nonlocal in an edit
SyntaxError: 'nonlocal count' inside an edit.*Put what should last into a list or a dict
def around():
    count = 0
    def make():
        with model.edit():  #!
            nonlocal count
            count += 1
    make()
around()

=== something else for an edit
TypeError: `edits` holds edits, not str\. Make one with `with model\.edit\(\):`
plain
model.edits.append("zero")  #!

=== edits that are not there
FileNotFoundError: there are no edits at .*nowhere.*Write them with `model\.export_edits
plain
model.import_edits("nowhere", "/nowhere")  #!

=== no edits to write
ValueError: `model` has no edits to write\. Make some with `with model\.edit\(inplace=True\):`
plain
model.export_edits("none", "/nowhere")  #!

=== numbers in a scan
RuntimeError: needs the numbers in a tensor, and a scan knows only shapes.*`model\.trace\(...\)`
with model.scan(x):
    shape = model.embed.output.shape
    if model.embed.output.sum() > 0:  #!
        pass

=== a wrong shape in a scan
RuntimeError: must have same reduction dim|cannot be multiplied
with model.scan(x):
    model.embed.output @ torch.ones(5, 5)  #!

=== an error in a session
ZeroDivisionError: division by zero
saved: y
with model.session():
    with model.trace(x):
        y = model.embed.output.save()
    1 / 0  #!

=== an error in a trace of a session
ZeroDivisionError: division by zero
saved: y
with nnsight.session():
    with model.trace(x):
        y = model.embed.output.save()
    with other.trace(x):
        other.head.output / (1 / 0)  #!

=== a session between invokes
ValueError: Cannot open a session here.*write `with model\.session\(\):` around the trace
with model.trace() as tracer:
    with model.session():  #!
        with tracer.invoke(x):
            y = model.output.save()
"""

STEPS = r"""
=== wrong order in a step
OutOfOrderError: `model\.embed\.output` of step 0 .*ran past it \(it is at `model\.head\.output`.*move this line up
with model.trace(x) as tracer:
    for step in tracer.iter[:]:
        model.head.output
        model.embed.output  #!

=== a module after an open loop
OutOfOrderError: `model\.head\.output` .*the loop over steps before this line ended because the run did.*tracer\.result
saved: seen
with model.trace(x) as tracer:
    for step in tracer.iter[:]:
        seen = model.embed.output.save()
    head = model.head.output.save()  #!

=== a step beyond the run
MissedProviderError: `model\.head\.output` of step 2 was not provided: the run came by there 1 time\(s\) before.*tracer\.iter\[:\]
with model.trace(x):
    model.head.next(2).output  #!

=== a negative step
ValueError: `tracer\.iter\[-1\]`: steps count from 0
with model.trace(x) as tracer:
    for step in tracer.iter[-1]:  #!
        model.head.output

=== steps counted from the end
ValueError: `tracer\.iter\[:-1\]`: steps count from 0
with model.trace(x) as tracer:
    with tracer.iter[:-1]:  #!
        model.head.output

=== steps by name
TypeError: `tracer\.iter\['all'\]`: steps are chosen by a number
with model.trace(x) as tracer:
    for step in tracer.iter["all"]:  #!
        model.head.output

=== back a step
ValueError: `model\.head\.next\(\)` goes on by a whole number of steps
with model.trace(x):
    model.head.next(-1)  #!

=== steps outside of a trace
OutsideTraceError: `model\.iter\[:\]` was called outside of interleaving
plain
list(model.iter[:])  #!

=== steps between invokes
OutsideTraceError: `tracer\.iter\[:\]` was called outside of interleaving.*tracer\.invoke
with model.trace() as tracer:
    for step in tracer.iter[:]:  #!
        pass
    with tracer.invoke(x):
        model.head.output
"""

CACHES = r"""
=== a cache of a module that does not exist
ValueError: no module 'layers\.0\.cf' in this model.*`model\.layers\.0\.fc`
with model.trace(x) as tracer:
    cache = tracer.cache(modules=["layers.0.cf"])  #!

=== a cache of a list of modules
ValueError: 'model\.layers' only holds modules.*modules=list\(model\.layers\)
with model.trace(x) as tracer:
    cache = tracer.cache(modules=model.layers)  #!

=== a cache of another model
ValueError: `model\.head` is part of another model
with model.trace(x) as tracer:
    cache = tracer.cache(modules=other.head)  #!

=== a cache after the trace
OutsideTraceError: `tracer\.cache\(\)` was called outside of interleaving
plain
with model.trace(x) as tracer:
    y = model.output.save()
tracer.cache()  #!

=== a cached value of a module that was passed
NotCachedError: no output of `model\.embed`: the run did not come by it.*first line of the block
with model.trace(x) as tracer:
    first = model.layers[0].output
    cache = tracer.cache()
    model.head.output
    early = cache.embed.output  #!

=== cached inputs that were not kept
NotCachedError: no inputs of `model\.embed`.*tracer\.cache\(include_inputs=True\)
plain
with model.trace(x) as tracer:
    cache = tracer.cache()
cache.embed.input  #!
"""

EXTENSIONS = r"""
=== a view without a way back
AttributeError: cannot assign `model\.head\.half`.*`@half\.postprocess`
class Half(nnsight.Envoy):
    @nnsight.eproperty(key="output")
    def half(self, value):
        return value / 2
mine = NNsight(model._module, envoys={"head": Half})
with mine.trace(x):
    mine.head.half = 0  #!

=== an envoy class for a path that does not exist
ValueError: the key 'haed' of `envoys` matches no module of Net\. Did you mean 'head'\?
plain
NNsight(model._module, envoys={"haed": nnsight.Envoy})  #!

=== no class of envoy
TypeError: `envoys` gives 'head' .*, which is no class of Envoy
plain
NNsight(model._module, envoys={"head": nn.Linear})  #!

=== a report that nobody asked for
ValueError: no report was kept of this run.*`with model\.trace\(x, report=True\) as tracer:`
plain
with model.trace(x) as tracer:
    model.head.output
type(tracer).report(tracer)  #!
"""

PLACES = r"""
=== output outside a trace
OutsideTraceError: `model\.embed\.output` outside of interleaving.*inside `with model\.trace\(
plain
y = model.embed.output  #!

=== input outside a trace
OutsideTraceError: `model\.embed\.input` outside of interleaving
plain
model.embed.input = x  #!

=== skip outside a trace
OutsideTraceError: `model\.embed\.skip` outside of interleaving.*inside `with model\.trace\(
plain
model.embed.skip(x)  #!

=== result after the trace
OutsideTraceError: `result` outside of interleaving.*`\.save\(\)`
plain
with model.trace(x) as tracer:
    y = model.output.save()
tracer.result  #!

=== output between invokes
OutsideTraceError: `model\.embed\.output` .*in none of its invokes.*`with tracer\.invoke\(x\):`
with model.trace() as tracer:
    with tracer.invoke(x):
        pass
    y = model.embed.output  #!

=== no input
OutsideTraceError: `model\.embed\.output` .*no input of its own.*`with model\.trace\(x\):`
with model.trace():
    y = model.embed.output.save()  #!

=== no input and nothing asked
ValueError: trace\(\) needs an input.*did not execute.*`with model\.trace\(x\):`
with model.trace():  #!
    pass

=== only empty invokes
ValueError: trace\(\) needs an input, or at least one .*invoke.*with an input
with model.trace() as tracer:  #!
    with tracer.invoke():
        y = model.output.save()

=== save outside a trace
ValueError: save\(\) was called outside a trace.*a plain assignment keeps it
plain
nnsight.save(x)  #!

=== save of a tensor outside a trace
ValueError: save\(\) was called outside a trace
plain
x.save()  #!

=== stop outside a trace
OutsideTraceError: `tracer\.stop\(\)` was called outside.*Call it inside
plain
with model.trace(x) as tracer:
    y = model.output.save()
tracer.stop()  #!

=== stop between invokes
OutsideTraceError: `tracer\.stop\(\)` was called outside.*inside a `with tracer\.invoke
with model.trace() as tracer:
    with tracer.invoke(x):
        y = model.output.save()
    tracer.stop()  #!

=== a barrier outside a trace
OutsideTraceError: `barrier\(\)` was called outside.*Call it inside
plain
with model.trace(x) as tracer:
    y = model.output.save()
meet = tracer.barrier(2)
meet()  #!

=== a barrier for too many
ValueError: barrier was never reached by every block: 2 of 3.*`tracer\.barrier\(2\)`
saved: y
with model.trace() as tracer:
    meet = tracer.barrier(3)
    with tracer.invoke(x):
        y = model.output.save()
        meet()  #!
    with tracer.invoke(x):
        meet()

=== a barrier for nobody
ValueError: a barrier needs the number of blocks.*not 0.*`tracer\.barrier\(2\)`
with model.trace() as tracer:
    meet = tracer.barrier(0)  #!

=== a barrier for a word
ValueError: a barrier needs the number of blocks.*not 'two'
with model.trace() as tracer:
    meet = tracer.barrier("two")  #!

=== another model inside a block
OutsideTraceError: `model\.embed\.output` here: it belongs to another model.*a `with` block of its own
saved: y
with model.trace(x):
    y = model.embed.output.save()
    z = other.embed.output.save()  #!

=== the same model inside a block
ValueError: Cannot invoke during an active model execution.*`model` is in the model that runs
with model.trace(x):
    with model.trace(x):  #!
        y = model.output.save()

=== a part of the same model inside a block
ValueError: Cannot invoke .*`model\.head` is in the model that runs.*`model\.layer\(x\)` runs one module
with model.trace(x):
    with model.head.trace(x):  #!
        y = model.head.output.save()

=== an invoke inside a block
ValueError: Cannot invoke while the model is already running.*the invokes directly in it
with model.trace() as tracer:
    with tracer.invoke(x):
        with tracer.invoke(x):  #!
            y = model.output.save()

=== an invoke of a trace with an input
ValueError: Cannot invoke: this trace was given an input of its own.*`with model\.trace\(\) as tracer:`
with model.trace(x) as tracer:
    with tracer.invoke(x):  #!
        y = model.output.save()

=== an invoke after the trace
ValueError: Cannot invoke: this trace is not open.*inside `with model\.trace\(\) as tracer:`
plain
with model.trace() as tracer:
    with tracer.invoke(x):
        y = model.output.save()
with tracer.invoke(x):  #!
    z = model.output.save()

=== invokes that do not fit together
BatchError: Can't batch these invokes: .*\[\[2, 4\], \[2, 5\]\].*agree in everything but their first
with model.trace() as tracer:  #!
    with tracer.invoke(x):
        y = model.output.save()
    with tracer.invoke(torch.ones(2, 5)):
        z = model.output.save()

=== a trace entered twice
NestedTraceError: already open: call `model\.trace` again
trace = model.trace(x)
with trace:
    with trace:  #!
        y = model.output.save()

=== a trace entered again
NestedTraceError: has run already, and a trace runs once: call `model\.trace\(...\)` again
trace = model.trace(x)
with trace:
    y = model.output.save()
with trace:  #!
    z = model.output.save()
"""

PYTHON = r"""
=== an error in the block
KeyError: 'missing'
saved: y
with model.trace(x):
    y = model.layers[0].output[0].save()
    z = {}["missing"]  #!

=== an error in a helper
KeyError: 'deep'
saved: y
def look_up(key):
    return {}[key]  #!
with model.trace(x):
    y = model.embed.output.save()
    look_up("deep")

=== an error in the second invoke
ZeroDivisionError: division by zero
saved: y z
with model.trace() as tracer:
    with tracer.invoke(x):
        y = model.embed.output.save()
        w = model.head.output.save()
    with tracer.invoke(x):
        z = model.embed.output.save()
        1 / 0  #!

=== an error between invokes
ZeroDivisionError: division by zero
with model.trace() as tracer:
    with tracer.invoke(x):
        y = model.embed.output.save()
    1 / 0  #!

=== an error in the model
ZeroDivisionError: ^the model's own$
saved: y
below
picky = NNsight(Picky())
with picky.trace(x):  #!
    y = picky.first.output.save()
    z = picky.second.output.save()

=== an error in the model after an edit
ZeroDivisionError: replaced before this error: `model\.first\.output`
below
picky = NNsight(Picky())
with picky.trace(x):  #!
    picky.first.output = picky.first.output * 2

=== Ctrl-C in the block
KeyboardInterrupt: ^$
saved: y
with model.trace(x):
    y = model.embed.output.save()
    raise KeyboardInterrupt  #!

=== exit in the block
SystemExit: ^3$
saved: y
with model.trace(x):
    y = model.embed.output.save()
    raise SystemExit(3)  #!

=== an iterator that has ended
StopIteration: ^$
with model.trace(x):
    y = next(iter([]))  #!

=== return in a block
SyntaxError: 'return' inside a trace block.*`return` it after the block
def run():
    with model.trace(x):
        return model.output.save()  #!
run()

=== break in a block
SyntaxError: 'break' inside a trace block.*`break` after the block
for _ in range(3):
    with model.trace(x):
        y = model.output.save()
        break  #!

=== yield in a block
SyntaxError: 'yield' inside a trace block.*yield after the block
def outputs():
    with model.trace(x):
        yield model.output.save()  #!
next(outputs())

=== no source
WithBlockNotFoundError: source .*not available.*`model\.run\(x, fn\)`
exec("with model.trace(x):\n    y = model.output.save()\n")  #!

=== an exit stack
WithBlockNotFoundError: snippet\.py, line 3: .*not by a `with` statement.*Write `with model\.trace
import contextlib
with contextlib.ExitStack() as stack:
    stack.enter_context(model.trace(x))  #!

=== enter by hand
WithBlockNotFoundError: snippet\.py, line 1: .*not by a `with` statement
model.trace(x).__enter__()  #!

=== a number for a module
TypeError: NNsight wraps a torch\.nn\.Module, not int.*`LanguageModel\(
plain
NNsight(3)  #!

=== a class for a module
TypeError: wraps a module, not a class: make one first, `Net\(
plain
NNsight(Net)  #!

=== a wrapped module for a module
TypeError: `model` is wrapped already
plain
NNsight(model)  #!

=== run without a function
TypeError: run\(\) needs a function: `model\.run\(x, fn\)`
plain
model.run(x)  #!

=== run without an input
ValueError: needs an input
plain
model.run(lambda tracer, model: model.output)  #!

=== an error in a function that is run
OutOfOrderError: `model\.embed\.output` .*ran past it
plain
def block(tracer, model):
    model.head.output
    model.embed.output  #!
model.run(x, block)

=== a keyword that the model does not take
TypeError: unexpected keyword argument 'scale'
with model.trace(x, scale=2):  #!
    y = model.output.save()

=== an argument that the model misses
TypeError: missing 1 required positional argument
with model.trace(use_extra=True):  #!
    y = model.output.save()

=== a generator for a tensor
TypeError: must be Tensor, not generator
below
with model.trace(row for row in x):  #!
    y = model.output.save()

=== a list for a tensor
TypeError: must be Tensor, not list
below
with model.trace([[1.0, 2.0, 3.0, 4.0]]):  #!
    y = model.output.save()

=== an array for an input
TypeError: must be Tensor, not numpy
below
with model.trace(np.ones((2, 4), dtype="float32")):  #!
    y = model.output.save()

=== text for a plain module
TypeError: must be Tensor, not str
below
with model.trace("Hello"):  #!
    y = model.output.save()

=== a lock that the code around the trace holds
RuntimeError: line \d+: this block takes the lock `lock`, which the code around the trace holds.*Let go of the lock before
import threading
lock = threading.RLock()
def total(value):
    with lock:
        return value.sum()
with lock:
    with model.trace(x):  #!
        y = total(model.output).save()
"""

GRADIENTS = r"""
=== gradients in the order of the forward
OutOfOrderError: `second\.grad` was requested but the backward pass already ran past it.*reverse
saved: kept
with model.trace(x):
    first, second = model.embed.output, model.head.input
    with model.output.sum().backward():
        kept = first.grad.save()
        late = second.grad.save()  #!

=== the gradient of a copy
MissedProviderError: `half\.grad` was not provided: the loss was not computed from this tensor
with model.trace(x):
    half = model.embed.output * 0.5
    with model.output.sum().backward():
        gradient = half.grad.save()  #!

=== the gradient of an input that requires none
MissedProviderError: `x\.grad` does not exist: this tensor requires no gradient.*requires_grad_
with model.trace(x):
    with model.output.sum().backward():
        gradient = x.grad.save()  #!

=== a gradient of another shape
BatchError: `h\.grad` does not fit: it is a tensor of shape \[4\], and .* \[2, 4\]
with model.trace(x):
    h = model.embed.output
    with model.output.sum().backward():
        h.grad = torch.zeros(4)  #!

=== a loss without a gradient
NotImplementedError: this loss has no gradient.*no_grad.*requires_grad_
with torch.no_grad(), model.trace(x):
    with model.output.sum().backward():  #!
        pass

=== a value of the model in a backward block
OutsideTraceError: `model\.head\.output` in a backward block.*above the `with loss\.backward
with model.trace(x):
    with model.embed.output.sum().backward():
        out = model.head.output.save()  #!


=== a cache in a backward block
OutsideTraceError: `tracer\.cache\(\)` was called in a backward block.*above the `with loss\.backward
with model.trace(x) as tracer:
    with model.output.sum().backward():
        tracer.cache()  #!


=== steps in a backward block
OutsideTraceError: `tracer\.iter\[:\]` was called in a backward block.*has no steps
with model.trace(x) as tracer:
    with model.output.sum().backward():
        for step in tracer.iter[:]:  #!
            pass


=== the next step in a backward block
OutsideTraceError: `tracer\.next\(\)` was called in a backward block.*has no steps
with model.trace(x) as tracer:
    with model.output.sum().backward():
        tracer.next()  #!


=== a backward through a graph that is gone
RuntimeError: backward through the graph a second time.*retain_graph
with model.trace(x):
    loss = model.output.square().sum()
    with loss.backward():
        pass
    with loss.backward():  #!
        pass
"""

OPERATIONS = r"""
=== a misspelt operation
AttributeError: `model\.layers\.0\.source` has no operation 'self_fx_0'.*`self_fc_0`.*print
with model.trace(x):
    y = model.layers[0].source.self_fx_0.output  #!

=== operations in the wrong order
OutOfOrderError: `model\.layers\.0\.source\.self_fc_0\.output` .*ran past it \(it is at `model\.layers\.0\.source\.self_act_0\.output`
saved: y
with model.trace(x):
    y = model.layers[0].source.self_act_0.output.save()
    z = model.layers[0].source.self_fc_0.output + 1  #!

=== an operation after the output of its module
OutOfOrderError: `model\.layers\.0\.source\.self_fc_0\.output` .*ran past it \(it is at `model\.layers\.0\.output`
with model.trace(x):
    y = model.layers[0].output
    z = model.layers[0].source.self_fc_0.output + 1  #!

=== an operation of a module that never runs
NeverCalledError: `model\.unused\.source\.F_linear_0\.output` .*never called in this run
with model.trace(x):
    z = model.unused.source.F_linear_0.output  #!

=== an operation on a branch that is not taken
OutOfOrderError: `model\.source\.self_extra_0\.output` .*on a branch that was not taken.*print
with model.trace(x):
    z = model.source.self_extra_0.output  #!

=== the input of an assignment
ValueError: `model\.source\.h_0` is an assignment, so it has no `\.input`: its value is `\.output`
with model.trace(x):
    z = model.source.h_0.input  #!

=== a replacement for an operation with other rows
BatchError: `model\.layers\.0\.source\.self_fc_0\.output` does not fit
with model.trace(x):
    model.layers[0].source.self_fc_0.output = torch.zeros(7, 4)  #!

=== the source of a module through an operation
SourceNotAvailable: `model\.layers\.0\.source\.self_fc_0` calls a module.*write `model\.layers\.0\.fc\.source`
with model.trace(x):
    z = model.layers[0].source.self_fc_0.source  #!

=== the source of what is no Python
SourceNotAvailable: `model\.embed\.source\.F_linear_0\.source` is not available.*not a Python function
with model.trace(x):
    z = model.embed.source.F_linear_0.source  #!

=== the source of a list of modules
SourceNotAvailable: `model\.layers\.source` is not available: a ModuleList .*only holds modules
with model.trace(x):
    z = model.layers.source  #!

=== an operation outside a trace
OutsideTraceError: Cannot access `model\.embed\.source\.F_linear_0\.output` outside of interleaving.*with model\.trace
plain
z = model.embed.source.F_linear_0.output  #!

=== an operation of another model
OutsideTraceError: `.*source\.F_linear_0\.output` here: it belongs to another model
with model.trace(x):
    z = other.embed.source.F_linear_0.output  #!
"""

TEXTS = (
    ORDER,
    NAMES,
    WRITES,
    STEPS,
    CACHES,
    EXTENSIONS,
    PLACES,
    PYTHON,
    GRADIENTS,
    EDITS,
    OPERATIONS,
)
MISTAKES = [m for text in TEXTS for m in parse(text)]
