"""Processes forked outside a run, in a block, and in the model."""

from __future__ import annotations

import os

import pytest

from tests.interleave.small import run_alone

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def forked(code: str) -> str:
    """A program that forks: `in_child(work)` runs `work` in a child, which must end well."""
    return run_alone(
        """
        warnings.simplefilter("ignore")
        import traceback

        def in_child(work):
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)  # ends a child that hangs
                try:
                    work()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            assert status == 0, status

        def trace_alone():
            assert_clean(model)
            for _ in range(3):
                with model.trace(x):
                    value = model.b.output.save()
                assert value.shape == (2, WIDTH)

        expected = model._module(x)
        with model.trace(x):
            _ = model.b.output
        """
        + code
    )


@needs_fork
class TestFork:
    def test_a_child_traces_on_threads_of_its_own(self):
        forked(
            """
        with model.trace(x):
            print(model.a.output.shape)
        assert turns._idle
        in_child(trace_alone)
        assert_clean(model)
            """
        )

    def test_a_child_of_a_block_traces_another_model_and_its_parent_goes_on(self):
        forked(
            """
        other = net(1)

        def trace_other():
            with other.trace(x):
                value = other.b.output.save()
            assert value.shape == (2, WIDTH)

        with model.trace(x):
            _ = model.a.output
            in_child(trace_other)
            value = model.output.save()
        assert torch.equal(value, expected)
        assert_clean(model)
            """
        )

    def test_a_child_of_the_model_ends_and_its_parent_goes_on(self):
        forked(
            """
        handle = model._module.b.register_forward_hook(lambda *_: in_child(lambda: None))
        with model.trace(x):
            _ = model.a.output
            value = model.output.save()
        handle.remove()
        assert torch.equal(value, expected)
        assert_clean(model)
            """
        )

    def test_a_child_that_goes_on_with_the_run_is_told_so(self):
        forked(
            """
        pids = []

        def fork(*_):
            pids.append(os.fork())

        handle = model._module.b.register_forward_hook(fork)
        status = 1
        try:
            with model.trace(x):
                _ = model.a.output
                value = (model.output + 0).save()
            assert torch.equal(value, expected)
        except RuntimeError as error:
            if pids[0] == 0:
                os._exit(0 if "forked" in str(error) else 1)
            raise
        if pids[0] == 0:
            os._exit(2)
        handle.remove()
        assert os.waitpid(pids[0], 0)[1] == 0
        assert_clean(model)
            """
        )

    def test_a_child_that_falls_out_of_a_block_ends(self):
        forked(
            """
        pids = []
        with model.trace(x):
            _ = model.a.output
            pids.append(os.fork())
            if pids[0] == 0:
                signal.alarm(10)
            value = model.output.save()
        assert os.waitpid(pids[0], 0)[1] == 0
        assert torch.equal(value, expected)
        assert_clean(model)
            """
        )

    def test_descriptors_are_not_shared(self):
        forked(
            """
        numbers = {b._descriptor for t in turns._all for b in (t._go, t._back)
                   if hasattr(b, "_descriptor")}

        def closed():
            for number in numbers:
                try:
                    os.fstat(number)
                except OSError:
                    continue
                raise AssertionError(number)
            assert not turns._all

        in_child(closed)
        assert_clean(model)
            """
        )
