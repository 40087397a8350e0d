"""Libraries of neural posterior estimation behind one interface: train, draw, score.

Each contender imports what it needs in `__init__`, has parameters and data as NumPy arrays,
`(num, dim)` and `(num, *shape)`, and uses the defaults of its library.
"""

import os
from importlib import import_module

import numpy as np

LARGEST_CALL = 100_000  # draws in one call for many observations; all libraries draw in such parts


class Amortized:
    """A guide of this project with default networks, for the task's model.

    Args:
        task: Name of the task.
        seed: Of training and draws.
    """

    backend: str
    num_steps, patience = 6_000, 1_500

    def __init__(self, task, seed):
        self.package = import_module(f"{self.backend}_amortize")
        self.model = import_module(f"tasks.{self.backend}_models").MODELS[task]
        self.seed = seed

    def train(self, theta, x):
        arrays = {"theta": self.array(theta), "x": self.array(x)}
        bank = self.package.Simulations(arrays, len(theta), {})
        guide = self.package.AmortizedGuide(self.model, observed="x")
        self.amortized = self.package.fit(
            self.model,
            guide,
            self.package.NPE(simulations=bank),
            num_steps=self.num_steps,
            patience=self.patience,
            progress_bar=False,
            **self.training_options(),
        )
        return len(self.amortized.history.losses)

    def draws(self, x, num):
        posterior = self.amortized.at(x=self.array(x))
        return np.asarray(posterior.sample(num, **self.seeded())["theta"])

    def draws_each(self, xs, num):
        posterior = self.amortized.at_each(observations={"x": self.array(xs)})
        return np.asarray(posterior.sample(num, **self.seeded())["theta"]).swapaxes(0, 1)

    def log_densities(self, theta, xs):
        posterior = self.amortized.at_each(observations={"x": self.array(xs)})
        return np.asarray(posterior.log_prob({"theta": self.array(theta)[None]}))[0]


class PyroAmortized(Amortized):
    backend = "pyro"

    def __init__(self, task, seed):
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.array = torch.as_tensor
        super().__init__(task, seed)

    def training_options(self):
        return {"compile": True}

    def seeded(self):
        return {}


class NumPyroAmortized(Amortized):
    backend = "numpyro"

    def __init__(self, task, seed):
        import jax

        self.array, self.key = jax.numpy.asarray, jax.random.key(seed)
        super().__init__(task, seed)

    def training_options(self):
        return {"rng_key": self.key}

    def seeded(self):
        return {"rng_key": self.key}


def prior(task):
    """The prior of a task's Pyro model, a torch distribution."""
    import pyro

    model = import_module("tasks.pyro_models").MODELS[task]
    return pyro.poutine.trace(model).get_trace().nodes["theta"]["fn"]


class Sbi:
    """`NPE` of sbi with one of its flows and all defaults.

    Args:
        task: Name of the task.
        seed: Of training and draws.
    """

    flow: str

    def __init__(self, task, seed):
        import torch
        from sbi.inference import NPE

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.array, self.method = torch.as_tensor, NPE
        self.prior = prior(task)

    def train(self, theta, x):
        inference = self.method(self.prior, density_estimator=self.flow, show_progress_bars=False)
        inference.append_simulations(self.array(theta), self.array(x).flatten(1))
        self.estimator = inference.train()
        self.posterior = inference.build_posterior(self.estimator)
        return inference.summary["epochs_trained"][-1]

    def draws(self, x, num):
        observed = self.array(x).reshape(1, -1)
        return self.posterior.sample((num,), x=observed, show_progress_bars=False).numpy()

    def draws_each(self, xs, num):
        observed = self.array(xs).flatten(1)
        found = self.posterior.sample_batched((num,), x=observed, show_progress_bars=False)
        return found.numpy().swapaxes(0, 1)

    def log_densities(self, theta, xs):
        found = self.estimator.log_prob(self.array(theta)[None], self.array(xs).flatten(1))
        return found.detach().numpy()[0]


class SbiMAF(Sbi):
    flow = "maf"


class SbiNSF(Sbi):
    flow = "nsf"


class BayesFlow:
    """`BasicWorkflow` of BayesFlow on JAX with its coupling flow and all defaults.

    Bounded parameters are mapped to the line by its adapter, as its users do.

    Args:
        task: Name of the task.
        seed: Of training and draws.
    """

    def __init__(self, task, seed):
        os.environ["KERAS_BACKEND"] = "jax"
        import bayesflow
        import keras

        keras.utils.set_random_seed(seed)
        self.bounds = support = prior(task).support
        for _ in range(2):  # `independent` around the constraint of each number
            support = getattr(support, "base_constraint", support)
        bounds = {
            side: float(np.min(np.asarray(getattr(support, f"{side}_bound"))))
            for side in ("lower", "upper")
            if hasattr(support, f"{side}_bound")
        }
        adapter = bayesflow.Adapter().convert_dtype("float64", "float32")
        if bounds:
            adapter = adapter.constrain("theta", **bounds)
        adapter = adapter.rename("theta", "inference_variables")
        self.workflow = bayesflow.BasicWorkflow(
            adapter=adapter.rename("x", "inference_conditions"),
            inference_network=bayesflow.networks.CouplingFlow(),
            standardize="all",
        )

    @staticmethod
    def flat(x):
        return x.reshape(len(x), -1)

    def train(self, theta, x):
        num_held_out, x = len(theta) // 10, self.flat(x)
        held_out = {"theta": theta[:num_held_out], "x": x[:num_held_out]}
        data = {"theta": theta[num_held_out:], "x": x[num_held_out:]}
        history = self.workflow.fit_offline(data, validation_data=held_out, verbose=0)
        return len(history.history["loss"])

    def draws(self, x, num):
        return self.draws_each(x[None], num)[0]

    def draws_each(self, xs, num):
        conditions = {"x": self.flat(xs)}
        return self.workflow.sample(num_samples=num, conditions=conditions)["theta"]

    def log_densities(self, theta, xs):
        return np.asarray(self.workflow.log_prob({"theta": theta, "x": self.flat(xs)}))


CONTENDERS = {
    "Pyro": PyroAmortized,
    "NumPyro": NumPyroAmortized,
    "sbi MAF": SbiMAF,
    "sbi NSF": SbiNSF,
    "BayesFlow": BayesFlow,
}
