"""Published posteriors of real and synthetic data, against moments of 10,000 reference draws."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends import host as host_of

pytestmark = pytest.mark.slow  # minutes of training for each

DATA = Path(__file__).parents[2] / "data" / "posteriordb"
NUM_DRAWS, NUM_LAGS = 10000, 5


@dataclass(frozen=True)
class Reference:
    """How one posterior is asked for.

    Args:
        parameters: The published parameters.
        observed: Name of the observed site.
        read: Arguments of the model, then the value of the observed site, from the file.
        options: Further arguments of the guide.
        is_amortized: Whether the guide is trained on simulations, for all data sets; else under
            the ELBO for this one: a prior a hundred times as wide as the posterior is too much
            for minutes of training.
    """

    parameters: tuple[str, ...]
    observed: str
    read: Callable[[dict[str, np.ndarray]], tuple[tuple[Any, ...], np.ndarray]]
    options: dict[str, Any] = field(default_factory=dict)
    is_amortized: bool = False


def lagged(series):
    """For each value but the first those before it, the latest first."""
    rows = [series[NUM_LAGS - lag : len(series) - lag] for lag in range(1, NUM_LAGS + 1)]
    return np.stack(rows, -1)


REFERENCES = {
    "kidscore_momiq": Reference(
        ("beta", "sigma"),
        "kid_score",
        lambda data: ((data["mom_iq"],), data["kid_score"]),
        {"inputs": {"mom_iq": "children"}},
    ),
    "logearn_interaction": Reference(
        ("beta", "sigma"),
        "log_earn",
        lambda data: ((data["height"], data["male"]), np.log(data["earn"])),
        {"inputs": {"height": "people", "male": "people"}},
    ),
    "ark": Reference(
        ("alpha", "beta", "sigma"),
        "y",
        lambda data: ((lagged(data["y"]),), data["y"][NUM_LAGS:]),
        {"inputs": {"lags": "steps"}},
    ),
    "gp_regr": Reference(
        ("rho", "alpha", "sigma"),
        "y",
        lambda data: ((data["x"],), data["y"]),
        {"inputs": {"x": None}},
        is_amortized=True,
    ),
    "low_dim_gauss_mix": Reference(
        ("mu", "sigma", "theta"),
        "y",
        lambda data: ((len(data["y"]),), data["y"]),
        {"sizes": {"num_rows": "rows"}},
    ),
    "hmm_example": Reference(
        ("theta1", "theta2", "mu"),
        "y",
        lambda data: ((), data["y"]),
    ),
}


@cache
def published(name):
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file}


@cache
def posterior(backend, name):
    host, reference = host_of(backend), REFERENCES[name]
    model = getattr(importlib.import_module(f"tests.references_{backend}"), name)
    data = {key[5:]: value for key, value in published(name).items() if key.startswith("data_")}
    args, observed = reference.read(data)
    args = tuple(
        host.array(value.astype(float)) if isinstance(value, np.ndarray) else value
        for value in args
    )
    guide = host.guide(model, observed=reference.observed, **reference.options)
    data = {reference.observed: host.array(observed)}
    if reference.is_amortized:
        training = {"objective": host.package.NPE(128), "num_steps": 20000}
    else:
        training = {"objective": host.trace_elbo(8), "num_steps": 4000, "kwargs": data}
    amortized = host.fit(model, guide, args=args, learning_rate=2e-3, **training)
    return amortized.at(*args, **data)


def errors(name, draws):
    """Largest error of a mean in reference standard deviations, and of a standard deviation."""
    reference, means, sds = published(name), [], []
    for parameter in REFERENCES[name].parameters:
        sd = reference[f"sd_{parameter}"]
        means.append(np.max(np.abs(draws[parameter].mean(0) - reference[f"mean_{parameter}"]) / sd))
        sds.append(np.max(np.abs(draws[parameter].std(0) / sd - 1)))
    return max(means), max(sds)


@pytest.mark.parametrize("name", REFERENCES)
def test_guide_alone(host, name):
    mean, sd = errors(name, host.sample(posterior(host.name, name), NUM_DRAWS))
    print(f"{name}: guide alone, mean {mean:.3f} sd, sd {sd:.1%}")  # shown by pytest -rP
    assert mean < 0.2
    assert sd < 0.2


@pytest.mark.parametrize("name", REFERENCES)
def test_guide_weighted(host, name):
    found = host.importance_sample(posterior(host.name, name), NUM_DRAWS)
    mean, sd = errors(name, found.resample(NUM_DRAWS))
    print(f"{name}: weighted, mean {mean:.3f} sd, sd {sd:.1%}, k-hat {found.summary.khat:.2f}")
    assert found.summary.khat < 0.7
    assert mean < 0.08
    assert sd < 0.08
