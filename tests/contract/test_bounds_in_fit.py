"""Bounds that weigh their parts in `fit`: amortized guides, mixtures, data sets of any size."""

import warnings

import numpy as np
import pytest

from tests.backends import small_guide

X = np.random.default_rng(0).normal(size=(6, 20))


def objective_of(host, name, num_particles=1):
    package = host.package
    return {
        "weighted": package.WeightedELBO(num_particles, kl_weight=2.0, free_bits=0.1),
        "emphasized": package.DataEmphasizedELBO(2.0, num_particles=num_particles),
        "info": package.InfoELBO(0.0, 5.0, num_particles=num_particles),
        "dip": package.DIPELBO(1.0, 1.0, variant="ii", num_particles=num_particles),
    }[name]


def fitted(host, objective, **options):
    model = host.models.conjugate_normal_many
    guide = small_guide(host, model, observed="x", sizes={"num_datasets": "datasets"}, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DataEmphasizedELBO: the model has no param")
        return host.fit(model, guide, objective, args=(host.array(X), 6), num_steps=100)


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["weighted", "emphasized", "info", "dip"])
def test_amortized_guides_are_trained(host, name):
    history = fitted(host, objective_of(host, name)).history
    assert np.isfinite(history.losses).all()
    assert history.held_out_losses[-1] < history.held_out_losses[0]


@pytest.mark.compiles
def test_splines_give_moments_by_draws(host):
    spec = host.package.SplineFlowDensity(num_transforms=1, num_bins=4, hidden_dims=(8,))
    history = fitted(host, objective_of(host, "dip", 2), densities=spec).history
    assert np.isfinite(history.losses).all()
    with pytest.raises(ValueError, match=r"sites \['z'\]: their distributions in the guide"):
        fitted(host, objective_of(host, "dip"), densities=spec)


@pytest.mark.compiles
def test_simulations_and_such_a_bound_at_once(host):
    mixed = host.package.Mixed({host.package.NPE(2): 0.5, objective_of(host, "info"): 0.5})
    assert np.isfinite(fitted(host, mixed).history.losses).all()


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["weighted", "info", "dip"])
def test_data_sets_of_any_size(host, name):
    """In NumPyro they are padded, and what is added is masked."""
    model = host.models.conjugate_normal_many

    def draw(rng):
        num = int(rng.integers(4, 20))
        return rng.normal(size=(num, 20)), num

    guide = small_guide(host, model, observed="x", sizes={"num_datasets": "datasets"})
    sampler = host.model_args(draw)
    history = host.fit(
        model, guide, objective_of(host, name), model_args=sampler, num_steps=4
    ).history
    assert np.isfinite(history.losses).all()
    assert history.plate_sizes["datasets"][0] < history.plate_sizes["datasets"][1]
