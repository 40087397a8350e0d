"""A missing backend is a skip on a laptop and a failure where AMORTIZE_REQUIRE names it."""

import pytest

from tests import conftest


@pytest.fixture
def without_numpyro(monkeypatch):
    monkeypatch.setitem(conftest.HOSTS, "numpyro", ("jax_that_is_not_installed",))


@pytest.mark.usefixtures("without_numpyro")
def test_missing_backend_is_a_skip(monkeypatch):
    monkeypatch.setattr(conftest, "REQUIRED", set())
    with pytest.raises(pytest.skip.Exception, match="numpyro needs jax_that_is_not_installed"):
        conftest.require("numpyro")


@pytest.mark.usefixtures("without_numpyro")
def test_missing_backend_is_a_failure_where_required(monkeypatch):
    monkeypatch.setattr(conftest, "REQUIRED", {"numpyro"})
    with pytest.raises(pytest.fail.Exception, match="AMORTIZE_REQUIRE names numpyro"):
        conftest.require("numpyro")


def test_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setattr(conftest, "REQUIRED", {"numpiro"})
    with pytest.raises(pytest.UsageError, match=r"unknown backends \['numpiro'\]"):
        conftest.pytest_configure()
