"""`async with model.trace(...):` is the same block: it runs when it is left, without a wait."""

from __future__ import annotations

import asyncio
import linecache

import pytest
import torch
from torch import nn

import nnsight
from nnsight import NNsight

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def model() -> NNsight:
    return NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False))


def test_a_trace(model):
    async def block():
        async with model.trace(X) as tracer:
            first = model[0].output.save()
            model[0].output = first * 2
        assert tracer is not None
        # fmt: off
        async with model.trace(X): second = model[0].output.save()  # noqa: E701
        # fmt: on
        async with model.trace(X):
            try:
                third = model[0].output.save()
            finally:
                fourth = model.output.save()
        async with model.trace(X):
            pass
        return first, second, third, fourth

    first, second, third, fourth = asyncio.run(block())
    assert torch.equal(first, model[0](X)) and torch.equal(first, second)
    assert torch.equal(first, third) and torch.equal(fourth, model(X))


def test_every_other_block(model):
    async def block():
        async with model.trace() as tracer:
            with tracer.invoke(X):
                one = model[0].output.save()
            with tracer.invoke(X * 2):
                two = model[0].output.save()
        async with model.edit() as edited:
            model[0].output[:] = 0
        async with nnsight.session():
            with edited.trace(X):
                zeros = model[0].output
            with model.trace(X):
                out = (model[0].output + zeros).save()
        return one, two, out

    one, two, out = asyncio.run(block())
    assert torch.equal(two, model[0](X * 2)) and torch.equal(one, out)


def test_tasks_side_by_side(model):
    async def task(scale):
        await asyncio.sleep(0)
        async with model.trace(X * scale):
            hidden = model[0].output.save()
        await asyncio.sleep(0)
        return torch.equal(hidden, model[0](X * scale))

    async def all_of_them():
        return await asyncio.gather(*map(task, range(5)))

    assert asyncio.run(all_of_them()) == [True] * 5


def test_managers_before_it(model):
    async def block():
        async with asyncio.Lock() as lock, model.trace(X):
            hidden = model[0].output.save()
        return lock, hidden

    assert torch.equal(asyncio.run(block())[1], model[0](X))


def test_an_error_stands_at_its_line(model):
    async def block():
        async with model.trace(X):
            hidden = model[0].output.save()
            hidden.nowhere()

    with pytest.raises(AttributeError, match="nowhere") as told:
        asyncio.run(block())
    assert torch.equal(told.value.saved["hidden"], model[0](X))
    assert told.traceback[-1].lineno == block.__code__.co_firstlineno + 2


def test_managers_after_it_cannot_be_awaited(model):
    text = (
        "async def block():\n"
        "    async with model.trace(X), asyncio.Lock():\n"
        "        hidden = model.output.save()\n"
        "asyncio.run(block())\n"
    )
    linecache.cache["<late>"] = (len(text), None, text.splitlines(keepends=True), "<late>")
    with pytest.raises(SyntaxError, match="'await' inside a trace block"):
        exec(compile(text, "<late>", "exec"), {"model": model, "X": X, "asyncio": asyncio})
