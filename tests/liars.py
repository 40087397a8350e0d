"""A model with a known posterior, and guides for it that are wrong in known ways.

`z ~ Normal(0, I)`, `y | z ~ Normal(z, noise^2 I)`; the posterior is normal with mean
`y / (1 + noise^2)` and variance `noise^2 / (1 + noise^2)` in each of the dimensions.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Answers:
    """Simulations, and what a guide answers to their data.

    `draws` has shape `(num_draws, num_datasets, dim)`; densities are summed over `dim`.
    """

    truths: np.ndarray
    data: np.ndarray
    draws: np.ndarray
    log_guide_draws: np.ndarray
    log_guide_truths: np.ndarray
    log_likelihood_draws: np.ndarray
    log_likelihood_truths: np.ndarray


# How each guide's normal lies to the exact one: (shift in posterior sds, factor of the sd).
SHIFTED = {
    "exact": (0.0, 1.0),
    "shift 0.3 sd": (0.3, 1.0),
    "width 0.7": (0.0, 0.7),
    "width 1.4": (0.0, 1.4),
    "width 3": (0.0, 3.0),
}
LIARS = ("shift 0.3 sd", "width 0.7", "width 1.4", "width 3", "prior", "permuted", "flipped")


def answers(name, rng, num_datasets=300, num_draws=999, dim=2, noise=0.5) -> Answers:
    """What the guide of this name answers to data of fresh simulations."""
    truths = rng.normal(size=(num_datasets, dim))
    data = truths + noise * rng.normal(size=truths.shape)
    mean, sd = data / (1 + noise**2), np.full(truths.shape, noise / np.sqrt(1 + noise**2))
    if name in SHIFTED:
        shift, factor = SHIFTED[name]
        mean, sd = mean + shift * sd, factor * sd
    elif name == "prior":
        mean, sd = np.zeros_like(mean), np.ones_like(sd)
    elif name == "permuted":
        mean = np.roll(mean, 1, axis=0)  # the data set before
    elif name == "flipped":
        mean = -mean
    draws = mean + sd * rng.normal(size=(num_draws, *truths.shape))
    return Answers(
        truths=truths,
        data=data,
        draws=draws,
        log_guide_draws=norm.logpdf(draws, mean, sd).sum(-1),
        log_guide_truths=norm.logpdf(truths, mean, sd).sum(-1),
        log_likelihood_draws=norm.logpdf(data, draws, noise).sum(-1),
        log_likelihood_truths=norm.logpdf(data, truths, noise).sum(-1),
    )
