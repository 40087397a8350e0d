"""Losses of guides written by hand, and their gradients, on either host."""

from importlib import import_module

import numpy as np

from tests.backends import numpy_tree

X = 1.3
OFF = {"mean": 0.2, "log_sd": 0.1}
EXACT = {"mean": X / 2, "log_sd": 0.5 * np.log(0.5)}


def evaluate(host, objective, model, guide, params, *args, num=1):
    """Losses `(num,)` of different seeds, and their gradients by parameter."""
    params = host.arrays(params)
    if host.name == "numpyro":
        jax = import_module("jax")

        def loss(key, params):
            return objective.loss(key, params, model, guide, *args)

        many = jax.vmap(jax.value_and_grad(loss, argnums=1), in_axes=(0, None))
        return numpy_tree(
            dict(
                zip(
                    ("loss", "gradient"),
                    jax.jit(many)(jax.random.split(host.key(0), num), params),
                    strict=True,
                )
            )
        )
    pyro, found = import_module("pyro"), []
    host.seed(0)
    for _ in range(num):
        pyro.clear_param_store()
        for name, value in params.items():
            pyro.param(name, value.clone())
        loss = objective.loss_and_grads(model, guide, *args)
        gradient = {name: pyro.param(name).grad for name in params}
        found.append(
            (loss, {name: 0 * params[name] if g is None else g for name, g in gradient.items()})
        )
    losses, gradients = zip(*found, strict=True)
    return {
        "loss": np.array(losses),
        "gradient": {
            name: np.stack([numpy_tree(each[name]) for each in gradients]) for name in params
        },
    }


def of_rows(host, written, objective, params, num_rows=100_000):
    """Bounds and gradients at rows with the same value: each row is a draw of its own."""
    params = {name: np.full(num_rows, value) for name, value in params.items()}
    x = host.array(np.full(num_rows, X))
    found = evaluate(host, objective, written.rows, written.guide_of_rows, params, x)
    gradient = {name: -value[0] for name, value in found["gradient"].items()}
    return -found["loss"][0] / num_rows, gradient


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
