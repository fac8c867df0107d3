"""Every mistake is told at the user's line with the user's frames, and the model is as it was."""

from __future__ import annotations

import gc
import io
import os
import pdb
import pickle
import re
import sys
import threading
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.behaviour import mistakes
from tests.behaviour.mistakes import MISTAKES, Loose, Mistake, Net
from tests.conftest import hooks_on
from tests.pages import OLD, ROOT, blocks_of
from tests.pages import run as run_block
from torch import nn

import nnsight
from nnsight import CONFIG, NNsight, OutOfOrderError
from nnsight.capture.errors import NestedTraceError
from nnsight.capture.skip import SkipBody
from nnsight.interleave.errors import Cancelled, Stop

OURS = (os.path.dirname(nnsight.__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)
INTERNAL = (SkipBody, Cancelled, Stop)


@dataclass
class Outcome:
    """What became of a snippet."""

    error: BaseException
    file: str
    names: dict[str, Any]
    warned: list[warnings.WarningMessage]

    def frames(self) -> list[traceback.FrameSummary]:
        """The frames of the traceback, from the snippet inwards."""
        found = traceback.extract_tb(self.error.__traceback__)
        return found[[frame.filename for frame in found].index(self.file) :]


Make = Callable[[str], Outcome]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Runs a snippet as a file of its own."""

    def run(code: str) -> Outcome:
        torch.manual_seed(0)
        file = tmp_path / "snippet.py"
        file.write_text(code)
        module = types.ModuleType("snippet")
        monkeypatch.setitem(sys.modules, "snippet", module)
        names = {**vars(mistakes), **vars(module), "np": np, "nn": nn, "nnsight": nnsight}
        names |= {"NNsight": NNsight, "model": NNsight(Net()), "other": NNsight(Net())}
        names |= {"x": torch.ones(2, 4), "torch": torch}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                exec(compile(code, str(file), "exec", dont_inherit=True), names)
            except BaseException as error:
                return Outcome(error, str(file), names, warned)
        raise AssertionError("nothing was said of this mistake")

    return run


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and everything that it came from."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def blamed(code: str) -> int:
    return next(n for n, line in enumerate(code.splitlines(), start=1) if line.endswith("#!"))


def told(error: BaseException) -> str:
    """The text under a traceback, with its notes, on one line."""
    lines = [str(error), *getattr(error, "__notes__", ())]
    return re.sub(r"\s+", " ", " ".join(lines))


def check_place(mistake: Mistake, outcome: Outcome) -> None:
    """The innermost frame of the user's is the line that is to blame."""
    if isinstance(outcome.error, SyntaxError):
        assert (outcome.error.filename, outcome.error.lineno) == (
            outcome.file,
            blamed(mistake.code),
        )
        return
    frames = [frame for frame in outcome.frames() if not frame.filename.startswith(OURS)]
    last = max(n for n, frame in enumerate(frames) if frame.filename == outcome.file)
    assert frames[last].lineno == blamed(mistake.code)
    others = {frame.filename for frame in frames[last + 1 :]} - {"<string>"}
    assert bool(others) == mistake.below, others


def check_frames(mistake: Mistake, outcome: Outcome) -> None:
    """Nothing of this library or of torch is shown, and no exception of its own making."""
    if not mistake.plain:
        shown = [frame.filename for frame in outcome.frames()]
        assert not [name for name in shown if name.startswith(OURS)]
        printed = "".join(traceback.format_exception(outcome.error))
        assert not [line for line in printed.splitlines() if f'File "{OURS[0]}' in line]
    assert not [e for e in chain(outcome.error) if isinstance(e, INTERNAL)]


def check_model(outcome: Outcome) -> None:
    """Nothing stays on the models, and the next trace gives what the module gives."""
    x = outcome.names["x"]
    for envoy in (outcome.names["model"], outcome.names["other"]):
        assert hooks_on(envoy._module) == []
        expected = envoy._module(x)
        with envoy.trace(x):
            inner = envoy.embed.output.save()
            result = envoy.output.save()
        assert torch.equal(result, expected)
        assert torch.equal(inner, envoy._module.embed(x))
        assert hooks_on(envoy._module) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake(mistake: Mistake, make: Make):
    outcome = make(mistake.code)
    error = outcome.error
    assert type(error) is mistake.error, "".join(traceback.format_exception(error))
    assert re.search(mistake.says, told(error)), told(error)
    check_place(mistake, outcome)
    check_frames(mistake, outcome)
    saved = getattr(error, "saved", {})
    tensors = {name for name, value in saved.items() if isinstance(value, torch.Tensor)}
    assert tensors == set(mistake.saved.split())
    said = [str(w.message) for w in outcome.warned if w.category is UserWarning]
    assert len(said) == bool(mistake.warns) and all(re.search(mistake.warns, t) for t in said)
    assert all(w.filename == outcome.file for w in outcome.warned)
    check_model(outcome)


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 45
    assert len({str(mistake) for mistake in MISTAKES}) == len(MISTAKES)


# --- what is left of an error ---------------------------------------------------------------------


@pytest.fixture
def model() -> NNsight:
    return NNsight(Net())


X = torch.ones(2, 4)


def read(envoy: Any) -> Any:
    """Ask for a value, for nothing but what comes of it."""
    return envoy.output


def test_the_first_error_wins_and_every_block_ends_its_own_way(model: NNsight):
    ended = []
    with pytest.raises(KeyError, match="first"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                try:
                    read(model.head)
                finally:
                    ended.append("finally")
            with tracer.invoke(X):
                read(model.embed)
                raise KeyError("first")
            with tracer.invoke(X):
                try:
                    read(model.head)
                except Exception:
                    ended.append("no error of its own")
                finally:
                    ended.append("later")
    assert ended == ["finally", "later"]
    assert hooks_on(model._module) == []


def test_an_error_while_a_sibling_ends_does_not_hide_the_first(model: NNsight):
    with pytest.raises(KeyError, match="first") as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                try:
                    read(model.head)
                finally:
                    raise ValueError("while cleaning up")
            with tracer.invoke(X):
                read(model.embed)
                raise KeyError("first")
    assert not [e for e in chain(caught.value) if isinstance(e, ValueError)]


def test_siblings_that_wait_in_vain_give_the_first_error(model: NNsight):
    with pytest.raises(OutOfOrderError, match=r"model\.embed\.output"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                read(model.head)
                read(model.embed)
            with tracer.invoke(X):
                read(model.unused)


def test_user_code_catches_the_original(model: NNsight):
    rows = [1, 2]
    with pytest.raises(IndexError) as caught:
        with model.trace(X):
            rows[5]
    assert type(caught.value) is IndexError and caught.value.args == ("list index out of range",)


def test_an_error_keeps_its_own_object(model: NNsight):
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        with model.trace(X):
            read(model.embed)
            raise mine
    assert caught.value is mine


def test_a_caught_error_lets_the_block_go_on(model: NNsight):
    with model.trace(X):
        read(model.layers[1])
        try:
            read(model.embed)
        except ValueError:
            told = nnsight.save("too late")
        result = model.output.save()
    assert told == "too late" and torch.equal(result, model._module(X))


def test_what_was_saved_is_on_the_error(model: NNsight):
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(X):
            embedded = model.embed.output.save()
            scratch = embedded + 1
            norms = [embedded.norm().item()].save()
            raise ZeroDivisionError
    saved = caught.value.saved
    assert set(saved) == {"embedded", "norms"}
    assert torch.equal(saved["embedded"], model._module.embed(X)) and len(saved["norms"]) == 1
    assert "scratch" not in locals() and "embedded" not in locals()


def test_an_error_in_a_trace_of_another_model_inside_a_block(model: NNsight):
    other = NNsight(Net())
    with pytest.raises(KeyError) as caught:
        with model.trace(X):
            outer = model.embed.output.save()  # noqa: F841 # it is looked for on the error
            with other.trace(X):
                inner = other.embed.output.save()  # noqa: F841 # likewise
                raise KeyError("deep")
    assert {"outer", "inner"} <= set(caught.value.saved)
    assert hooks_on(model._module) == hooks_on(other._module) == []


ERRORS = [
    *(nnsight.BatchError, nnsight.MissedProviderError, nnsight.NeverCalledError),
    *(nnsight.OutOfOrderError, nnsight.OutsideTraceError, nnsight.WithBlockNotFoundError),
]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_pickle(kind: type[Exception]):
    twin = pickle.loads(pickle.dumps(kind("why")))
    assert type(twin) is kind and str(twin) == "why"


def test_an_error_of_a_trace_pickles_with_what_was_saved(model: NNsight):
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(X) as tracer:
            result = tracer.result.detach().save()  # noqa: F841 # it is looked for on the error
            read(model.embed)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert str(twin) == str(caught.value)
    assert torch.equal(twin.saved["result"], model._module(X))
    with pytest.raises(OutOfOrderError, match="ran past it"):
        raise twin


def test_the_cause_of_an_error_is_kept(model: NNsight):
    with pytest.raises(ValueError, match="converted") as caught:
        with model.trace(X):
            try:
                read(model.head)
                read(model.embed)
            except OutOfOrderError as error:
                raise ValueError("converted") from error
    cause = caught.value.__cause__
    assert type(cause) is OutOfOrderError
    frames = [frame.filename for frame in traceback.extract_tb(cause.__traceback__)]
    assert set(frames) == {__file__}


def test_what_an_error_came_up_in_is_kept(model: NNsight):
    with pytest.raises(ValueError, match="converted") as caught:
        with model.trace(X):
            try:
                read(model.head)
                read(model.embed)
            except OutOfOrderError:
                raise ValueError("converted")  # noqa: B904 # without a `from`
    assert type(caught.value.__context__) is OutOfOrderError
    with pytest.raises(OutOfOrderError) as outer:
        try:
            raise KeyError("around the trace")
        except KeyError:
            with model.trace(X):
                read(model.head)
                read(model.embed)
    assert type(outer.value.__context__) is KeyError


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_a_group_of_errors_stays_a_group(model: NNsight):
    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821 # a builtin from 3.11 on
        with model.trace(X):
            found: list[Exception] = [KeyError(1)]
            try:
                read(model.head)
                read(model.embed)
            except OutOfOrderError as error:
                found.append(error)
            raise ExceptionGroup("both", found)  # noqa: F821
    assert [type(e) for e in caught.value.exceptions] == [KeyError, OutOfOrderError]
    frames = traceback.extract_tb(caught.value.exceptions[1].__traceback__)
    assert {frame.filename for frame in frames} == {__file__}


def test_all_frames_show_when_asked(model: NNsight, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CONFIG.APP, "DEBUG", True)
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(X):
            read(model.head)
            read(model.embed)
    shown = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert any(name.startswith(OURS) for name in shown)
    assert shown[-1].startswith(OURS)


def test_a_debugger_finds_the_names_of_the_block(model: NNsight):
    def run() -> None:
        factor = 3
        with model.trace(X):
            hidden = model.embed.output
            scaled = hidden * factor
            raise KeyError(scaled.shape)

    with pytest.raises(KeyError) as caught:
        run()
    innermost = caught.value.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost is not None
    names = innermost.tb_frame.f_locals
    assert names["factor"] == 3 and torch.equal(names["scaled"], names["hidden"] * 3)
    assert innermost.tb_frame.f_code.co_name == "run"

    typed, shown = io.StringIO("p factor * 14\np scaled.shape\nup\nq\n"), io.StringIO()
    debugger = pdb.Pdb(stdin=typed, stdout=shown, nosigint=True, readrc=False)
    debugger.reset()
    debugger.interaction(None, caught.value.__traceback__)
    assert "42" in shown.getvalue() and "torch.Size([2, 4])" in shown.getvalue()
    assert "raise KeyError(scaled.shape)" in shown.getvalue()


def test_nothing_stays_alive_after_an_error():
    def fail() -> list[weakref.ref[Any]]:
        model = NNsight(Net())
        gone = [weakref.ref(model._module)]
        with pytest.raises(KeyError):
            with model.trace(X):
                gone.append(weakref.ref(model.embed.output))
                raise KeyError
        with pytest.raises(OutOfOrderError):
            with model.trace(X):
                gone.append(weakref.ref(model.head.output))
                read(model.embed)
        return gone

    gc.disable()
    try:
        assert [ref() for ref in fail()] == [None, None, None]
    finally:
        gc.enable()


def test_many_errors_leave_no_threads(model: NNsight):
    def fail() -> None:
        with pytest.raises(KeyError):
            with model.trace(X):
                read(model.embed)
                raise KeyError

    fail()
    before = threading.active_count()
    for _ in range(20):
        fail()
    assert threading.active_count() <= before


# --- what is told without an error ----------------------------------------------------------------


def test_a_keyword_that_the_model_drops_is_a_warning():
    model = NNsight(Loose())
    with pytest.warns(UserWarning, match=r"`scal=` has no effect: .*Loose.*mean `scale=`") as told:
        with model.trace(X, scal=2.0):
            pass
    assert told[0].filename == __file__
    with model.trace(X, scale=2.0):
        pass


def test_a_keyword_that_the_model_may_use_is_none_of_our_business():
    class Reads(nn.Module):
        def forward(self, x: torch.Tensor, **kwargs: float) -> torch.Tensor:
            return x * kwargs.get("scale", 1.0)

    with NNsight(Reads()).trace(X, scale=2.0) as tracer:
        doubled = tracer.result.save()
    assert torch.equal(doubled, X * 2)


def test_stop_tells_of_the_blocks_that_it_cut_short(model: NNsight):
    with pytest.warns(UserWarning, match=r"stop\(\) ended the run before the block at .* line \d+"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                early = model.embed.output.save()
                tracer.stop()
            with tracer.invoke(X):
                late = model.head.output.save()
    assert early.shape == (2, 4) and "late" not in locals()


def test_backward_in_place_needs_the_gradient_to_be_kept(model: NNsight):
    with model.trace(X):
        hidden = model.embed.output
        hidden.retain_grad()
        model.output.sum().backward()
        gradient = hidden.grad.save()
    assert gradient.shape == (2, 4) and gradient.abs().sum() > 0
    with pytest.warns(UserWarning, match=r"\.retain_grad\(\)"):  # PyTorch's own
        with model.trace(X):
            hidden = model.embed.output
            model.output.sum().backward()
            gradient = hidden.grad.save()


# --- with a language model ------------------------------------------------------------------------


def test_the_logits_of_a_transformers_model_are_in_its_output(gpt2):
    with pytest.raises(TypeError) as caught:
        with gpt2.trace("Hello"):
            print(gpt2.output[0, -1])
    assert "`model.output.logits[0, -1]`" in told(caught.value)


def test_a_setting_of_generation_in_a_trace_is_a_warning(gpt2):
    with pytest.warns(UserWarning, match="`max_new_tokens=` has no effect.*generate"):
        with gpt2.trace("Hello", max_new_tokens=3):
            logits = gpt2.output.logits.save()
    assert logits.shape[0] == 1


def test_an_empty_prompt(gpt2):
    with pytest.raises(ValueError, match=r"empty.*at least one token"):
        with gpt2.trace(""):
            gpt2.output.logits.save()
    assert hooks_on(gpt2._module) == []


@pytest.mark.parametrize(
    ("place", "says"),
    [("input", "this invoke has none: it went in as `inputs_embeds=`"), ("wte", "never called")],
)
def test_ids_asked_for_by_an_invoke_of_embeddings(gpt2, place, says):
    width = gpt2.config.n_embd
    with pytest.raises(ValueError, match=says) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke("Hello"):
                kept = gpt2.transformer.h[0].output.save()
            with tracer.invoke(inputs_embeds=torch.ones(1, 2, width)):
                if place == "input":
                    gpt2.input = gpt2.input * 2  # here
                else:
                    gpt2.transformer.wte.output = 0  # here
    *_, last = traceback.extract_tb(caught.value.__traceback__)
    assert (last.line or "").endswith("# here")
    assert hooks_on(gpt2._module) == [] and "kept" not in locals()


# --- the pages on errors --------------------------------------------------------------------------

PAGES = sorted((ROOT / "docs" / "errors").glob("*.md"))
QUOTED = re.compile(r"^```python([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_quotes_what_is_said(page: Path):
    names: dict[str, Any] = {"__name__": "__page__"}
    found = QUOTED.findall(page.read_text(encoding="utf-8"))
    for block, (_, code, quote) in zip(blocks_of(page), found, strict=True):
        assert block.code == code
        if block.info.get("test") == "skip":
            continue
        said: list[str] = []
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                run_block(block, names)
            except Exception as error:
                said.append(told(error))
        said += [str(warning.message) for warning in warned]
        if OLD and block.info.get("transformers") == "5":
            assert not said
            continue
        expected = " ".join(quote.split())
        assert any(expected in " ".join(text.split()) for text in said) or not quote, said


@pytest.mark.parametrize("kind", [*ERRORS, NestedTraceError])
def test_every_error_has_its_page(kind: type[Exception]):
    page = (ROOT / "docs" / "errors" / f"{kind.__name__}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {kind.__name__}\n") and "```python raises=" in page
    assert f"({kind.__name__}.md)" in (ROOT / "docs" / "errors" / "README.md").read_text()
