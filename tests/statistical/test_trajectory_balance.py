"""A mode that the guide does not know, found off its own draws."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from tests.losses import trained

pytestmark = pytest.mark.slow

# Both components of the guide start at the larger of two modes, 12 sds from the other.
START = {
    "logits": np.zeros(2),
    "means": np.array([-3.5, -2.5]),
    "log_sds": np.log(np.array([0.5, 0.5])),
}


def mass_of_the_other_mode(host, noise):
    written = import_module(f"tests.particles_{host.name}")
    objective = host.package.TrajectoryBalance(32, noise=noise)
    found = trained(
        host,
        objective,
        written.two_modes,
        written.guide_of_two_modes,
        START,
        num_steps=4000,
        rate=0.03,
    )
    weights = np.exp(found["logits"]) / np.exp(found["logits"]).sum()
    mass = (weights * norm.sf(0.0, found["means"], np.exp(found["log_sds"]))).sum()
    print(f"noise {noise}: {mass:.4f} of the mass beyond zero")
    return mass


def test_wider_draws_find_the_mode(host):
    """It has 0.3 of the mass; the tolerance of 0.03 was fixed before the run."""
    assert abs(mass_of_the_other_mode(host, 4.0) - 0.3) < 0.03


def test_own_draws_do_not(host):
    """Less than 0.01 was fixed before the run."""
    assert mass_of_the_other_mode(host, 0.0) < 0.01
