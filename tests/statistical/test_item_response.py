"""Students by items, against NUTS: crossed plates whose latents hang together."""

from functools import cache

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require

pytestmark = pytest.mark.slow

NUM_DRAWS = 4000
SIZE = 40, 12
MODELS = {"item_response_1pl": False, "item_response": True}


def answers(*, is_discriminating):
    """One data set of the model."""
    (num_students, num_items), rng = SIZE, np.random.default_rng(5)
    ability, difficulty = rng.normal(size=(num_students, 1)), rng.normal(size=num_items)
    discrimination = np.exp(0.5 * rng.normal(size=num_items)) if is_discriminating else 1.0
    probability = 1 / (1 + np.exp(-discrimination * (ability - difficulty)))
    return (rng.uniform(size=probability.shape) < probability).astype("float32")


@cache
def reference(name):
    """Long NUTS runs by NumPyro, and their draws."""
    require("numpyro")
    import jax
    from numpyro.infer import MCMC, NUTS

    model = getattr(host_of("numpyro").models, name)
    y = answers(is_discriminating=MODELS[name])
    mcmc = MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=2000,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *SIZE, jax.numpy.asarray(y))
    return {site: np.asarray(draws) for site, draws in mcmc.get_samples().items()}, y


@pytest.mark.parametrize("name", MODELS)
def test_means_spreads_and_the_contrast_across_the_plates(host, name):
    """Local coverage alone does not see what is wrong between the plates."""
    expected, y = reference(name)
    model = getattr(host.models, name)
    guide = host.guide(
        model, observed="y", sizes={"num_students": "students", "num_items": "items"}
    )
    objective = host.package.NPE(32)
    amortized = host.fit(model, guide, objective, args=SIZE, num_steps=3000, learning_rate=2e-3)
    draws = host.sample(amortized.at(*SIZE, y=host.array(y)), NUM_DRAWS)
    for site, exact in expected.items():
        value = draws[site].reshape(NUM_DRAWS, -1)
        exact = exact.reshape(len(exact), -1)
        error = np.abs(value.mean(0) - exact.mean(0)) / exact.std(0)
        ratio = value.std(0) / exact.std(0)
        assert error.max() < 0.25, (site, error)
        assert ratio.min() > 0.85, (site, ratio)
        assert ratio.max() < 1.15, (site, ratio)
    contrast, exact = (
        each["ability"].reshape(len(each["ability"]), -1).mean(1) - each["difficulty"].mean(1)
        for each in (draws, expected)
    )
    assert contrast.std() / exact.std() == pytest.approx(1.0, abs=0.1)
