"""Students by items, against NUTS: crossed plates whose latents hang together."""

import copy
from functools import cache

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require

pytestmark = pytest.mark.slow

NUM_DRAWS = 4000
MODELS = {"item_response_1pl": False, "item_response": True}
SMALL, LARGE = (40, 12), (200, 20)
# Simulations per step, steps and learning rate; the large guide starts from the small one.
RUNS = {
    ("item_response_1pl", SMALL): (32, 3000, 2e-3),
    ("item_response", SMALL): (32, 3000, 2e-3),
    ("item_response_1pl", LARGE): (8, 2000, 1e-3),
    ("item_response", LARGE): (32, 4000, 1e-3),  # 1 to 2 hours; 8 and 2,000 leave 0.3 to 0.5 sd
}


def answers(size, *, is_discriminating):
    """One data set of the model."""
    (num_students, num_items), rng = size, np.random.default_rng(5)
    ability, difficulty = rng.normal(size=(num_students, 1)), rng.normal(size=num_items)
    discrimination = np.exp(0.5 * rng.normal(size=num_items)) if is_discriminating else 1.0
    probability = 1 / (1 + np.exp(-discrimination * (ability - difficulty)))
    return (rng.uniform(size=probability.shape) < probability).astype("float32")


@cache
def reference(name, size):
    """Long NUTS runs by NumPyro, and their draws."""
    require("numpyro")
    import jax
    from numpyro.infer import MCMC, NUTS

    model = getattr(host_of("numpyro").models, name)
    y = answers(size, is_discriminating=MODELS[name])
    mcmc = MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=2000,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *size, jax.numpy.asarray(y))
    return {site: np.asarray(draws) for site, draws in mcmc.get_samples().items()}, y


@cache
def trained(backend, name, size):
    host = host_of(backend)
    model, options = getattr(host.models, name), {}
    num_simulations, num_steps, rate = RUNS[name, size]
    if size == SMALL:
        sizes = {"num_students": "students", "num_items": "items"}
        guide = host.guide(model, observed="y", sizes=sizes)
    else:
        small = trained(backend, name, SMALL)
        guide = small.guide
        if backend == "pyro":  # where the weights are in the guide
            guide = copy.deepcopy(guide)
        else:
            options = {"params": small.params}
    return host.fit(
        model,
        guide,
        host.package.NPE(num_simulations),
        args=size,
        num_steps=num_steps,
        learning_rate=rate,
        **options,
    )


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", MODELS)
def test_means_spreads_and_the_contrast_across_the_plates(host, name, size):
    """Local coverage alone does not see what is wrong between the plates."""
    expected, y = reference(name, size)
    draws = host.sample(trained(host.name, name, size).at(*size, y=host.array(y)), NUM_DRAWS)
    errors, ratios = {}, {}
    for site, exact in expected.items():
        value = draws[site].reshape(NUM_DRAWS, -1)
        exact = exact.reshape(len(exact), -1)
        errors[site] = np.abs(value.mean(0) - exact.mean(0)) / exact.std(0)
        ratios[site] = value.std(0) / exact.std(0)
        found = f"{errors[site].max():.3f} sd, {ratios[site].min():.3f} to {ratios[site].max():.3f}"
        print(f"{name} {size}: {site}, means within {found}")  # shown by pytest -rP
    contrast, exact = (
        each["ability"].reshape(len(each["ability"]), -1).mean(1)
        - each["difficulty"].reshape(len(each["difficulty"]), -1).mean(1)
        for each in (draws, expected)
    )
    print(f"{name} {size}: sd of the contrast {contrast.std() / exact.std():.3f}")
    for site, error in errors.items():
        assert error.max() < 0.25, (site, error)
        assert ratios[site].min() > 0.85, (site, ratios[site])
        assert ratios[site].max() < 1.15, (site, ratios[site])
    assert contrast.std() / exact.std() == pytest.approx(1.0, abs=0.1)
