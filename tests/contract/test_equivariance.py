"""Plates are symmetries: any order of the rows, any number of them."""

import warnings

import numpy as np
import pytest

from tests.backends import small_guide

NUM = 8


def schools(rng, num_rows=6):
    sigma = np.linspace(9, 18, NUM)
    latents = {
        "mu": 4 + 2 * rng.normal(size=num_rows),
        "tau": np.exp(rng.normal(size=num_rows)),
        "z": rng.normal(size=(num_rows, NUM)),
    }
    return sigma, latents, np.broadcast_to(4 + 12 * rng.normal(size=NUM), (num_rows, NUM))


@pytest.mark.compiles
@pytest.mark.parametrize("centering", ["centered", "noncentered"])
def test_permuted_schools(host, rng, centering):
    model = getattr(host.models, f"eight_schools_{centering}")
    sigma, latents, y = schools(rng)
    if centering == "centered":
        latents["theta"] = latents["mu"][:, None] + latents["tau"][:, None] * latents.pop("z")
    local = "theta" if centering == "centered" else "z"
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"})
    amortized = host.scrambled(model, guide, host.array(sigma), scale=0.2)
    found = host.site_log_probs(amortized, (host.array(sigma),), latents, {"y": y})
    order = rng.permutation(NUM)
    moved = host.site_log_probs(
        amortized,
        (host.array(sigma[order]),),
        latents | {local: latents[local][:, order]},
        {"y": y[:, order]},
    )
    for name in ("mu", "tau"):
        np.testing.assert_allclose(moved[name], found[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved[local], found[local][:, order], rtol=1e-5, atol=1e-5)
    # The test can fail: another order of the data alone is another data set.
    other = host.site_log_probs(amortized, (host.array(sigma),), latents, {"y": y[:, order]})
    assert np.abs(other[local] - found[local]).max() > 1e-3


def test_draws_at_permuted_rows_have_the_permuted_law(host):
    """Local draws follow their rows; global ones do not notice."""
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.1)
    y = np.linspace(-2, 2, NUM)
    order = np.arange(NUM)[::-1]
    draws = [
        host.sample(amortized.at(y=host.array(data)), 4000, seed=seed)
        for seed, data in enumerate((y, y[order]))
    ]
    for name, index in (("mu", np.s_[...]), ("theta", np.s_[:, order])):
        first, second = draws[0][name], draws[1][name][index]
        error = np.sqrt(first.var(0) / 4000 + second.var(0) / 4000)
        assert np.all(np.abs(first.mean(0) - second.mean(0)) < 4.5 * error), name


@pytest.mark.compiles
def test_both_nested_plates_are_symmetries(host, rng):
    model = host.models.nested_groups
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.1)
    latents = {
        "mu": rng.normal(size=5),
        "scale": np.exp(0.3 * rng.normal(size=5)),
        "level": rng.normal(size=(5, 4, 1)),
    }
    y = rng.normal(size=(5, 4, 5))
    found = host.site_log_probs(amortized, (), latents, {"y": y})
    rows = host.site_log_probs(amortized, (), latents, {"y": y[:, :, ::-1]})
    for name in latents:
        np.testing.assert_allclose(rows[name], found[name], rtol=1e-5, atol=1e-5)
    groups = host.site_log_probs(
        amortized, (), latents | {"level": latents["level"][:, ::-1]}, {"y": y[:, ::-1]}
    )
    for name in ("mu", "scale"):
        np.testing.assert_allclose(groups[name], found[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(groups["level"], found["level"][:, ::-1], rtol=1e-5, atol=1e-5)


def test_many_data_sets_are_each_alone(host, rng):
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.2)
    y = rng.normal(size=(3, NUM))
    latents = {"mu": rng.normal(size=(7, 3)), "theta": rng.normal(size=(7, 3, NUM))}
    posterior = amortized.at_each(observations={"y": host.array(y)})
    together = host.log_prob(posterior, latents)
    joint = host.log_joint(posterior, latents)
    assert together.shape == joint.shape == (7, 3)
    for number in range(3):
        own = {name: value[:, number] for name, value in latents.items()}
        alone = amortized.at(y=host.array(y[number]))
        np.testing.assert_allclose(
            host.log_prob(alone, own), together[:, number], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            host.log_joint(alone, own), joint[:, number], rtol=1e-4, atol=1e-4
        )


@pytest.mark.compiles
def test_any_size_within_the_trained_range_and_a_warning_outside(host, rng):
    model = host.models.eight_schools_noncentered

    def draw(rng):
        return (rng.uniform(8, 19, size=rng.choice([3, 15])),)

    guide = small_guide(host, model, observed="y", inputs={"sigma": "schools"})
    objective = host.package.NPE(16, model_args=host.model_args(draw))
    amortized = host.fit(model, guide, objective, num_steps=20)
    low, high = amortized.history.plate_sizes["schools"]
    assert (low, high) == (3, 15)

    def posterior(num):
        y = host.array(10 * rng.normal(size=num))
        return amortized.at(host.array(rng.uniform(8, 19, size=num)), y=y)

    draws = host.sample(posterior(8), 50)
    assert draws["theta"].shape == draws["z"].shape == (50, 8)
    with pytest.warns(UserWarning, match=r"plate 'schools': size 40 is outside the trained range"):
        far = posterior(40)
    assert host.sample(far, 20)["z"].shape == (20, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(low)
        posterior(high)
