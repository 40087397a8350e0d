"""Same weights, same numbers; same model, same structure."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require
from tests.parity.float64_guides import CASES, SIGMA
from tests.problems import PROBLEMS
from tests.source_tree import ROOT

# Each is compiled anew, so the others are slow.
QUICK = (
    "eight_schools_centered",
    "linear_gaussian_2__autoregressive",
    "every_discrete_support",
    "grouped_normal",
    "rows_of_any_number",
    "autoregression",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Guides of NumPyro in files, and their densities by both packages: the folder of a case."""
    for backend in ("numpyro", "pyro"):
        require(backend)
    folders = {}

    def folder_of(name):
        is_quick = name in QUICK
        if is_quick not in folders:
            folders[is_quick] = tmp_path_factory.mktemp("float64")
            names = [each for each in CASES if (each in QUICK) == is_quick]
            for backend in ("numpyro", "pyro"):
                script = [sys.executable, "-m", "tests.parity.float64_guides", backend]
                subprocess.run(
                    [*script, str(folders[is_quick]), *names],
                    cwd=ROOT,
                    env={**os.environ, "JAX_ENABLE_X64": "1"},
                    check=True,
                )
        return folders[is_quick]

    return folder_of


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(CASES)],
)
def test_a_guide_of_numpyro_has_the_same_densities_in_pyro(written, name):
    folder = written(name)
    with (
        np.load(folder / f"{name}.numpyro.npz") as theirs,
        np.load(folder / f"{name}.pyro.npz") as ours,
    ):
        assert set(theirs) == set(ours)
        for site in theirs:
            assert theirs[site].std() > 1e-3  # the values differ, so that agreement means something
            np.testing.assert_allclose(
                ours[site].reshape(theirs[site].shape), theirs[site], rtol=1e-9, err_msg=site
            )


STRUCTURES = {
    "conjugate_normal": ((), {"observed": "x"}),
    "conjugate_normal_many": ((None, 4), {"observed": "x", "sizes": {"num_datasets": "datasets"}}),
    "linear_gaussian_2": ((), {"observed": "x"}),
    "linear_gaussian_10": ((), {"observed": "x"}),
    "linear_gaussian_2_many": ((None, 4), {"observed": "x"}),
    "linear_gaussian_10_many": ((None, 4), {"observed": "x"}),
    "two_mode_sign": ((), {"observed": "x"}),
    "contaminated_normal": ((), {"observed": "x"}),
    "ramp": ((), {"observed": "y"}),
    "slopes": ((PROBLEMS["slopes"].times,), {"observed": "y", "inputs": {"times": "rows"}}),
    "parabola": ((), {"observed": "x"}),
    "beta_binomial": ((), {"observed": "k"}),
    "normal_unknown_scale": ((), {"observed": "x"}),
    "hierarchical_normal": ((), {"observed": "y"}),
    "eight_schools_centered": ((SIGMA,), {"observed": "y", "inputs": {"sigma": "schools"}}),
    "eight_schools_noncentered": ((SIGMA,), {"observed": "y", "inputs": {"sigma": "schools"}}),
    "linear_regression": (
        (np.random.default_rng(0).normal(size=(7, 3)),),
        {"observed": "y", "inputs": {"features": "rows"}},
    ),
    "nested_groups": ((), {"observed": "y"}),
    "wide_supports": ((), {"observed": "y"}),
    "headings": ((), {"observed": "y"}),
    "autoregression": ((), {"observed": "y"}),
    "panels": ((np.array([0.5, -1.0, 2.0]),), {"observed": "y", "inputs": {"weight": "rows"}}),
    "blob_image": ((), {"observed": "y"}),
    "two_observed": ((), {"observed": ("a", "b")}),
    "with_factor": ((), {"observed": "y"}),
    "with_parameter": ((), {"observed": "y"}),
    "paired_rows": ((), {"observed": ("a", "b")}),
    "mixture_assignments": ((), {"observed": "y"}),
    "poisson_count": ((), {"observed": "y"}),
    "regimes": ((), {"observed": "y"}),
    "switches": ((), {"observed": "y"}),
    "switches_in_a_plate": ((), {"observed": "y"}),
    "every_discrete_support": ((), {"observed": "y"}),
    "crossed_effects": ((), {"observed": "y"}),
    "grouped_normal": (
        (PROBLEMS["grouped_normal"].group, 8),
        {
            "observed": "y",
            "groups": {"group": ("groups", "rows")},
            "sizes": {"num_groups": "groups"},
        },
    ),
    "two_locals": ((), {"observed": "y"}),
    "mixture_priors": ((), {"observed": "y"}),
    "reduced_deterministic": ((), {"observed": "y"}),
}


def structure_of(backend, name):
    require(backend)
    host = host_of(backend)
    args, options = STRUCTURES[name]
    args = tuple(host.array(value) if isinstance(value, np.ndarray) else value for value in args)
    observed, inputs = options["observed"], options.get("inputs", {})
    return host.module("reading").read_structure(
        getattr(host.models, name),
        args,
        {},
        observed=(observed,) if isinstance(observed, str) else observed,
        inputs=inputs,
        sizes=options.get("sizes", {}),
        groups=options.get("groups", {}),
    )


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_a_model_has_the_same_structure_in_both(name):
    first, second = (structure_of(backend, name) for backend in ("numpyro", "pyro"))
    assert first.to_dict() == second.to_dict()
    assert str(first) == str(second)


def test_both_files_of_models_have_the_same_functions():
    names = []
    for backend in ("numpyro", "pyro"):
        require(backend)
        models = host_of(backend).models
        names.append(
            {
                name
                for name, value in vars(models).items()
                if callable(value) and getattr(value, "__module__", "") == models.__name__
            }
        )
    assert names[0] == names[1]
