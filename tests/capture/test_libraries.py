"""Which files came with Python or a package."""

from __future__ import annotations

import ast
import json
import os
import site

import pytest

from nnsight.capture.libraries import is_installed


def test_files_of_python_and_of_packages():
    assert is_installed(ast.__file__) and is_installed(json.__file__)
    assert is_installed(pytest.__file__) and is_installed(os.path.realpath(pytest.__file__))
    assert is_installed(os.path.join(site.getusersitepackages(), "own", "module.py"))


def test_files_of_the_users():
    folder = os.path.dirname(os.__file__)
    assert not is_installed(__file__) and not is_installed(f"{folder}-of-mine/module.py")
    assert not is_installed("<stdin>") and not is_installed("")
