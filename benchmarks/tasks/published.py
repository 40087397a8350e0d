"""Observations, reference draws and published results of the sbibm tasks."""

from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / "data" / "sbibm"

# Mean C2ST over observations of NPE with 10,000 and 100,000 simulations, and of the best sequential
# method with 10,000 where importance weights apply; Lueckmann and others 2021 (arXiv:2101.04653).
NPE = {
    "two_moons": (0.61, 0.54),
    "gaussian_mixture": (0.62, 0.55),
    "slcp": (0.90, 0.83),
    "slcp_distractors": (0.97, 0.86),
    "gaussian_linear": (0.55, 0.51),
    "gaussian_linear_uniform": (0.55, 0.51),
    "bernoulli_glm": (0.68, 0.56),
    "bernoulli_glm_raw": (0.76, 0.61),
    "sir": (0.68, 0.58),
    "lotka_volterra": (1.00, 0.98),
}
SEQUENTIAL = {
    "two_moons": 0.55,
    "gaussian_mixture": 0.55,
    "slcp": 0.71,
    "bernoulli_glm": 0.55,
    "sir": 0.56,
}
_SHAPES = {"slcp": (4, 2)}


@cache
def constants(task):
    """All arrays of a task, by name."""
    with np.load(FOLDER / f"{task}.npz") as file:
        return {name: file[name] for name in file.files}


def noise():
    """Locations and scale matrices, as Cholesky factors, of the noise of slcp_distractors."""
    found = constants("slcp_distractors")
    factors = found["noise_scale_tril"]  # with negative numbers on the diagonal
    return found["noise_loc"], factors * np.sign(np.einsum("nii->ni", factors))[:, None, :]


def observations(task):
    """The observed data sets, `(5, *shape)`, as the model of the task has them."""
    flat = constants(task)["observation"]
    return flat.reshape(len(flat), *_SHAPES.get(task, flat.shape[1:]))


def reference(task):
    """Draws from the posterior of each observation, `(5, 2000, dim)`."""
    return constants(task)["reference_posterior"]
