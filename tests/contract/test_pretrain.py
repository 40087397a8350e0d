"""A start for embeddings: what it moves, what it leaves, and what it is good for."""

import numpy as np
import pytest

from tests import backends
from tests.backends import small

NUM_STEPS = 3


def parts(host, guide):
    """Weights of the embeddings and of all else, and the constants."""
    if host.name == "pyro":
        weights = {
            name: value.detach().numpy().copy() for name, value in guide.state_dict().items()
        }
        weights = {name.removeprefix("chain."): value for name, value in weights.items()}
        constants = weights.pop("standardisation")
    else:
        weights = backends.numpy_tree(
            dict(guide.init_params()[host.module("guides.weights").PARAMS])
        )
        constants = guide._weights.unpack(guide.init_params())[1].vector()
    own = {name: value for name, value in weights.items() if name.startswith("embeddings.")}
    return own, {name: weights[name] for name in weights.keys() - own.keys()}, constants


def pretrained(host, guide, *args, num_steps=NUM_STEPS, **options):
    if host.name == "numpyro":
        options["rng_key"] = host.key(0)
    return host.package.pretrain(
        args[0], guide, *args[1:], num_steps=num_steps, progress_bar=False, **options
    )


@pytest.mark.compiles
@pytest.mark.parametrize("is_set_up", [False, True])
def test_it_moves_the_embeddings_alone(host, is_set_up):
    model = host.models.hierarchical_normal
    guide, other = (host.guide(model, observed="y", **small(host)) for _ in range(2))
    other.setup()
    if is_set_up:
        guide.setup()
    history = pretrained(host, guide, model, host.package.NPE(8))
    assert history.losses.shape == (NUM_STEPS,)
    own, rest, constants = parts(host, guide)
    before, rest_before, constants_before = parts(host, other)
    assert own.keys() == before.keys()
    assert all(np.abs(own[name] - before[name]).max() > 0 for name in own)
    for name, value in rest_before.items():
        np.testing.assert_array_equal(rest[name], value, err_msg=name)
    np.testing.assert_array_equal(constants, constants_before)
    # The guide goes on from there, and the store has nothing left of the regression.
    amortized = host.fit(model, guide, host.package.NPE(8), num_steps=2)
    assert np.isfinite(amortized.history.losses).all()
    if host.name == "pyro":
        import pyro

        assert all(name.startswith("amortized$$$") for name in pyro.get_param_store().keys())  # noqa: SIM118


@pytest.mark.slow
def test_a_guide_learns_sooner_from_it(host):
    """A series: the loss after 100 steps against that of a guide that started from nothing."""
    model, losses = host.models.autoregression, []
    for is_warm in (False, True):
        spec = host.package.SequenceEmbedding()
        guide = host.guide(model, observed="y", embedding=spec)
        if is_warm:
            pretrained(host, guide, model, num_steps=800)
        history = host.fit(model, guide, host.package.NPE(128), num_steps=100).history
        losses.append(history.held_out_losses[-1])
    assert losses[1] < losses[0] - 0.1, losses


def test_what_is_refused(host):
    model = host.models.conjugate_normal
    guides = [host.guide(model, observed="x") for _ in range(2)]
    with pytest.raises(TypeError, match="guide: expected an AmortizedGuide, got EnsembleGuide; of"):
        pretrained(host, host.package.EnsembleGuide(guides), model)
    with pytest.raises(TypeError, match="objective: expected NPE, got Trace_ELBO; the latents of"):
        pretrained(host, guides[0], model, host.trace_elbo())
