"""What tests of bounds on both hosts share: parameters trained by the host's own SVI."""

from importlib import import_module

import numpy as np

from tests.backends import numpy_tree


def trained(host, objective, model, guide, params, *args, num_steps=1000, rate=0.02):
    """Parameters after steps of the host's `SVI` with Adam and a rate that falls to nothing."""
    params = host.arrays(params)
    if host.name == "numpyro":
        optax = import_module("optax")
        schedule = optax.cosine_decay_schedule(rate, num_steps)
        svi = host.infer.SVI(model, guide, optax.adam(schedule), objective)
        result = svi.run(
            host.key(0), num_steps, *args, progress_bar=False, init_params=dict(params)
        )
        return numpy_tree(dict(result.params))
    pyro, torch = import_module("pyro"), import_module("torch")
    host.seed(0)
    pyro.clear_param_store()
    for name, value in params.items():
        pyro.param(name, value.clone())
    optimizer = pyro.optim.CosineAnnealingLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": rate},
            "T_max": num_steps,
        }
    )
    svi = host.infer.SVI(model, guide, optimizer, objective)
    for _ in range(num_steps):
        svi.step(*args)
        optimizer.step()
    return {name: numpy_tree(pyro.param(name)) for name in params}


def loss_without_jit(host, objective, model, guide, *args, params=None):
    """One evaluation as a user makes it, not compiled."""
    if host.name == "pyro":
        pyro = import_module("pyro")
        pyro.clear_param_store()
        for name, value in host.arrays(params or {}).items():
            pyro.param(name, value)
        return objective.loss(model, guide, *args)
    return objective.loss(host.key(0), host.arrays(params or {}), model, guide, *args)


def standard_error(values):
    return np.std(values, axis=0) / np.sqrt(len(values))
