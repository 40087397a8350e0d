"""Pointers against enumeration: outliers in sets of any size."""

from functools import cache

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.catalogue import OTHER
from tests.problems import PROBLEMS, Outlier
from tests.statistical.test_expected_gap import assert_small, gap_of

pytestmark = pytest.mark.slow

DISTANCE = 0.05  # mean total variation from the enumerated posterior


@cache
def trained_on_outliers(backend):
    host = host_of(backend)
    model = host.models.outlier
    densities = {"k": host.package.PointerDensity("rows")}
    guide = host.guide(model, observed="y", sizes={"num_rows": "rows"}, densities=densities)
    sizes = (5, 8, 12, 20)
    args = host.model_args(lambda rng: (None, int(rng.choice(sizes))))
    objective = host.package.NPE(128, model_args=args)
    # The number of values is that of the rows, so that NumPyro cannot pad them.
    options = {"padding": "never"} if backend == "numpyro" else {}
    return host.fit(model, guide, objective, num_steps=1500, learning_rate=2e-3, **options)


def log_probs(host, amortized, y, args):
    """Of every element at each data set, `(num, num_rows)`."""
    num, size = y.shape
    found = [
        host.site_log_probs(amortized, args, {"k": np.full(num, number)}, {"y": y})["k"].reshape(-1)
        for number in range(size)
    ]
    return np.stack(found, 1).astype(float)


@pytest.mark.parametrize("size", [5, 10, 20])
def test_outliers_in_sets_of_any_size(host, size):
    problem = Outlier(num_rows=size)
    _, data = problem.sample_joint(np.random.default_rng(1), 500)
    found = log_probs(host, trained_on_outliers(host.name), data["y"], (None, size))
    distance = 0.5 * np.abs(np.exp(found) - np.exp(problem.log_probs(data))).sum(1).mean()
    print(f"{host.name}, {size} rows: total variation {distance:.4f}")
    assert distance < DISTANCE


def test_the_gap_is_small(host):
    problem = PROBLEMS["outlier"]
    gap = gap_of(host, trained_on_outliers(host.name), problem, (None, problem.num_rows))
    assert_small(gap, problem, OTHER)
