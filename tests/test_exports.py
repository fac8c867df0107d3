"""What `import nnsight` gives, and what it does not do."""

from __future__ import annotations

import subprocess
import sys

import nnsight

SURFACE = {
    "CONFIG",
    "BatchError",
    "Cache",
    "DiffusionModel",
    "Envoy",
    "LanguageModel",
    "MissedProviderError",
    "NNsight",
    "NeverCalledError",
    "OutOfOrderError",
    "OutsideTraceError",
    "SourceNotAvailable",
    "Trace",
    "TransformersModel",
    "VisionLanguageModel",
    "WithBlockNotFoundError",
    "WrapperModule",
    "__version__",
    "compare",
    "eproperty",
    "is_model_running",
    "login",
    "register",
    "save",
    "session",
    "status",
    "whoami",
}


def test_the_public_names():
    assert set(nnsight.__all__) == SURFACE == set(dir(nnsight))
    for name in nnsight.__all__:
        assert getattr(nnsight, name) is not None


def in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_import_leaves_transformers_alone():
    loaded = in_a_fresh_process(
        "import sys, nnsight; print([m for m in ('transformers', 'requests', 'socketio', 'rich', "
        "'matplotlib', 'accelerate') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_import_changes_two_things_in_torch():
    code = """
import builtins, sys, threading, torch
watched = [torch, torch.Tensor, torch.nn.Module, builtins, object]
before = [dict(vars(w)) for w in watched]
hooks = (sys.excepthook, sys.displayhook, sys.gettrace(), threading.gettrace())
import nnsight
for w, old in zip(watched, before):
    new = vars(w)
    changed = [k for k in new if k not in old or new[k] is not old[k]]
    print(getattr(w, '__name__', w), [k for k in changed if not k.startswith('_')])
assert hooks == (sys.excepthook, sys.displayhook, sys.gettrace(), threading.gettrace())
assert not hasattr(object(), 'save')
"""
    lines = in_a_fresh_process(code).splitlines()
    assert lines == [
        "torch []",
        "Tensor ['backward', 'save']",
        "Module []",
        "builtins []",
        "object []",
    ]


def test_the_methods_of_tensors_can_be_left_as_they_are():
    code = (
        "import os, torch; plain = torch.Tensor.backward\n"
        "os.environ['NNSIGHT_TENSOR_SAVE'] = os.environ['NNSIGHT_TENSOR_BACKWARD'] = '0'\n"
        "import nnsight; print(hasattr(torch.Tensor, 'save'), torch.Tensor.backward is plain)"
    )
    assert in_a_fresh_process(code) == "False True"
