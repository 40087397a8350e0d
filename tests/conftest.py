"""Threads, seeds, and the rule that no missing backend goes unnoticed."""

import os
from pathlib import Path

# Two workers on two cores: one thread each, set before NumPy, torch or JAX is imported.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
# Compilation is most of the time of the NumPyro tests: the workers, and later runs, share it.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# jaxlib 0.10.1 warns at every piece of code from that cache of a "feature" that is a preference.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib
import importlib.util
import random
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest

HOSTS = {"pyro": ("torch", "pyro"), "numpyro": ("jax", "numpyro")}
REQUIRED = {name for name in os.environ.get("AMORTIZE_REQUIRE", "").split(",") if name}


def require(backend: str) -> None:
    """Skip the test if a host library is missing; fail instead where AMORTIZE_REQUIRE names it."""
    missing = [name for name in HOSTS[backend] if importlib.util.find_spec(name) is None]
    if missing and backend in REQUIRED:
        pytest.fail(f"AMORTIZE_REQUIRE names {backend}, but {', '.join(missing)} is not installed")
    if missing:
        pytest.skip(f"{backend} needs {', '.join(missing)}", allow_module_level=True)


@dataclass(frozen=True)
class Backend:
    """One of the two hosts: its name and our package for it."""

    name: str
    package: ModuleType


@pytest.fixture(params=sorted(HOSTS))
def backend(request) -> Backend:
    """Each backend in turn: one test body, two packages."""
    require(request.param)
    return Backend(request.param, importlib.import_module(f"{request.param}_amortize"))


@pytest.fixture
def host(backend):
    """The adapter of tests/backends.py for each backend in turn."""
    return importlib.import_module("tests.backends").host(backend.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """The same global random state and an empty Pyro store for every test."""
    random.seed(0)
    np.random.seed(0)
    if "pyro" in sys.modules:
        pyro = sys.modules["pyro"]
        pyro.set_rng_seed(0)
        pyro.clear_param_store()


def forget_compiled_code() -> None:
    """Thousands of compiled functions would end the process; the cache on disk keeps them."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_code():
    yield
    forget_compiled_code()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """What compiles much is slow in NumPyro; the longest group goes first, so that it is done."""
    for item in items:
        if item.get_closest_marker("compiles") and "[numpyro" in item.nodeid:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "parity/test_numbers" not in item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker for each file and backend, so that tests can share one training."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileAndBackend(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, test = nodeid.partition("::")
            parameters = test.partition("[")[2].rstrip("]").split("-")
            return f"{path}::{[name for name in sorted(HOSTS) if name in parameters]}"

    return ByFileAndBackend(config, log)


def pytest_configure() -> None:
    unknown = REQUIRED - set(HOSTS)
    if unknown:
        raise pytest.UsageError(f"AMORTIZE_REQUIRE: unknown backends {sorted(unknown)}")
