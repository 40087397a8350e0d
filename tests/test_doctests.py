"""The examples in the docstrings run and print what they say."""

import doctest
import importlib

import numpy as np
import pytest

from tests.conftest import require
from tests.source_tree import PACKAGES, modules

HOST = {"pyro_amortize": "pyro", "numpyro_amortize": "numpyro"}
MODULES = [
    f"{package}.{path.removesuffix('.py').removesuffix('__init__').replace('/', '.')}".rstrip(".")
    for package in PACKAGES
    for path in modules(package)
]


@pytest.mark.compiles
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    package = name.split(".")[0]
    if package in HOST:
        require(HOST[package])
    results = doctest.testmod(importlib.import_module(name), extraglobs={"np": np})
    assert results.failed == 0
