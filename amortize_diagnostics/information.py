"""How much a guide's answer depends on the data: rates of sites and mutual information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SiteRates:
    """The Kullback-Leibler divergence of a guide from the prior, site by site.

    A rate of zero is a collapsed site: its draws are the prior's, whatever the data. A rate above
    zero alone does not say that the data matter: see `MutualInformation`.

    Args:
        elements: By site the divergence of each plate element at each data set in nats, averaged
            over draws, shape `([num_datasets,] *plates)`.
        mean: By site the mean over data sets and plate elements, in nats.
        se: By site the standard error of `mean` from the number of draws, in nats; NaN for
            one draw. That the data are a sample is not in it.
    """

    elements: dict[str, Array]
    mean: dict[str, float]
    se: dict[str, float]

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: rate {self.mean[name]:.3f} ± {self.se[name]:.3f} nats per element"
            for name in self.mean
        )


def site_rates(log_guide: Mapping[str, ArrayLike], log_prior: Mapping[str, ArrayLike]) -> SiteRates:
    """Estimate how far each site of a guide is from the model's prior.

    `E_q(z | x) [log q(z_s | earlier sites, x) - log p(z_s | parents)]` in nats, the average of
    the difference over draws of the guide. Summed over sites it is `KL(q(z | x) || p(z))`,
    because both densities are products of these conditionals; that of one site is no divergence
    of its marginals.

    Use it on draws of a guide at given data, to find sites that have collapsed. The model's
    likelihood plays no part.

    Args:
        log_guide: By site `log q` of each draw and element, shape `(num_draws, ...)`, in nats.
        log_prior: By site `log p` at the same draws, same shape and space.

    Returns:
        The rate of each site.

    Raises:
        ValueError: If sites or shapes differ, or if a density is not finite.

    Example:
        >>> rates = site_rates({"z": [[0.5, 0.5], [0.7, 0.3]]}, {"z": [[0.0, 0.0], [0.0, 0.0]]})
        >>> rates.elements["z"].round(2).tolist(), round(rates.mean["z"], 2)
        ([0.6, 0.4], 0.5)

    References:
        Alemi and others (2018), Fixing a broken ELBO, arXiv:1711.00464, where it is the rate.
    """
    if set(log_guide) != set(log_prior) or not log_guide:
        raise ValueError(
            f"log_guide and log_prior: expected the same sites, got {sorted(log_guide)} and "
            f"{sorted(log_prior)}. Pass the latent sites, without data."
        )
    elements, mean, se = {}, {}, {}
    for name, density in log_guide.items():
        guide, prior = (np.asarray(values, float) for values in (density, log_prior[name]))
        if guide.shape != prior.shape or not guide.size or guide.ndim == 0:
            raise ValueError(
                f"site '{name}': expected two arrays of one shape (num_draws, ...), got "
                f"{guide.shape} and {prior.shape}. Evaluate both densities at the same draws."
            )
        ratio = guide - prior
        _check_finite(f"site '{name}'", ratio)
        by_draw = ratio.reshape(len(ratio), -1).mean(1)
        elements[name] = ratio.mean(0)
        mean[name] = float(by_draw.mean())
        se[name] = _standard_error(by_draw)
    return SiteRates(elements, mean, se)


@dataclass(frozen=True, eq=False)
class MutualInformation:
    """How many nats a guide's draws tell about which datum they belong to.

    `mean` is at most `limit = log num_data`, and bounds the information over all data from below:
    close to the limit it says only that there are too few data. `print` says so.

    Args:
        mean: `I(x; z)` over the given data in nats: zero if the guide ignores the data.
        se: Standard error of `mean` over draws and data, in nats.
        by_site: What each site adds to the sites before it, in nats; their sum is `mean`.
        num_data: Number of data.
    """

    mean: float
    se: float
    by_site: dict[str, float]
    num_data: int

    @property
    def limit(self) -> float:
        """`log num_data`, the largest value that so few data can show, in nats."""
        return float(np.log(self.num_data))

    def __str__(self) -> str:
        text = f"mutual information {self.mean:.3f} ± {self.se:.3f} nats over {self.num_data} data"
        if self.mean > self.limit - 1.0:
            text += f", which can show at most {self.limit:.3f}: take more data"
        return "\n".join([text, *(f"  {site}: {add:.3f}" for site, add in self.by_site.items())])


def mutual_information(log_prob: Mapping[str, ArrayLike]) -> MutualInformation:
    """Estimate the mutual information of a guide and its data.

    `I = (1/N) sum_i E_q(z | x_i) [log q(z | x_i) - log (1/N) sum_j q(z | x_j)]` in nats, with the
    mixture over all data as the aggregate posterior. It equals
    `E_x KL(q(z | x) || p(z)) - KL(q(z) || p(z))`: the rate without what the aggregate posterior
    differs from the prior. A guide that ignores the data has zero, whatever it draws.

    Use it beside `site_rates`, on data that the model has not simulated itself if possible.
    Over N data it is at most log N.

    Args:
        log_prob: By site, in the order in which the guide draws them: `log q(z_s | earlier
            sites, x_j)` at the draws from `x_i`, entry `[draw, i, j]` of shape `(num_draws,
            num_data, num_data)`, in nats. `-inf` is allowed where `i` and `j` differ.

    Returns:
        The information, in all and by site.

    Raises:
        ValueError: If there is no site, if the shapes differ or are not square with at least two
            data, or if a density is not finite where it must be.

    Example:
        >>> apart = [[[0.0, -np.inf], [-np.inf, 0.0]]]
        >>> found = mutual_information({"z": apart, "noise": [[[0.0, 0.0], [0.0, 0.0]]]})
        >>> round(found.mean, 3), {site: round(add, 3) for site, add in found.by_site.items()}
        (0.693, {'z': 0.693, 'noise': 0.0})

    References:
        Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational
        evidence lower bound, equation 6.
    """
    if not log_prob:
        raise ValueError("log_prob: expected one site or more, got none. Pass latent sites.")
    sites = {name: np.asarray(values, float) for name, values in log_prob.items()}
    shape = next(iter(sites.values())).shape
    if len(shape) != 3 or not shape[0] or shape[1] != shape[2] or shape[1] < 2:
        raise ValueError(
            "log_prob: expected shape (num_draws, num_data, num_data) with num_data >= 2, got "
            f"{shape}. Evaluate each draw at every datum."
        )
    num_data = shape[1]
    so_far = np.zeros(shape)
    information, by_site = np.zeros(num_data), {}
    for name, values in sites.items():
        if values.shape != shape:
            raise ValueError(
                f"site '{name}': expected shape {shape} as of the first site, got {values.shape}. "
                "Sum over plates that belong to one datum."
            )
        if np.any(np.isnan(values) | np.isposinf(values)):
            raise ValueError(
                f"site '{name}': expected numbers or -inf, got NaN or +inf. Look for a density "
                "that overflows."
            )
        so_far = so_far + values
        own = np.diagonal(so_far, axis1=1, axis2=2)
        _check_finite(f"site '{name}': densities of draws at their own data", own)
        ratio = own - logsumexp(so_far, axis=2) + np.log(num_data)
        before, information = information, ratio.mean(0)  # over draws: one entry for each datum
        by_site[name] = float((information - before).mean())
    return MutualInformation(
        mean=float(information.mean()),
        se=_standard_error(information),
        by_site=by_site,
        num_data=num_data,
    )


def _standard_error(values: Array) -> float:
    if values.size < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(values.size))


def _check_finite(name: str, values: Any) -> None:
    num_bad = int(np.count_nonzero(~np.isfinite(values)))
    if num_bad:
        raise ValueError(
            f"{name}: expected finite log densities, got {num_bad} of {np.size(values)} that are "
            "not. Check that guide and model have the same support there."
        )
