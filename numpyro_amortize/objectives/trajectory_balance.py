"""Trajectory balance: a guide that hits an unnormalised density, on or off its own draws."""

from __future__ import annotations

from typing import Literal

from jax import Array

from numpyro_amortize.objectives.fixed_draws import FixedDrawsObjective
from numpyro_amortize.tracing import Trace

_SITE = "log_z"


class TrajectoryBalance(FixedDrawsObjective):
    """Trajectory balance, the loss of generative flow networks, for `fit` and the host's `SVI`.

    `L = mean_j mean_k [log Z_j + log q(z_jk | x_j) - log p(z_jk, x_j)]^2` in squared nats, over K
    draws and the mean over the plate elements with weights of their own. It is zero where the
    guide is the posterior and `log Z` the log evidence, wherever the draws come from: they may be
    wider than the guide, to find modes that it does not know. No gradient passes through them, so
    that latents may be discrete, and the parameters of the model are not trained. Steps of a
    trajectory are latent sites; `add_path` around the model makes them for a continuous one.
    Use it where the posterior has modes that other objectives at the data miss, with `noise` of
    about their distance and a guide whose family can follow the density of the model that far:
    squares of log weights far out outweigh the others. Avoid it with many latents that share
    their weights, whose log weights spread over hundreds of nats at the start. Without noise and
    site `log_z` it is `SelfConsistency`.

    Args:
        num_particles: Draws, K.
        log_z: `"vargrad"` puts the mean of the log weights of the draws in the place of `log Z`
            and makes the loss their unbiased variance; `"amortized"` reads `log Z` from a
            deterministic site `log_z` of the guide, a guide of your own, with the shape of the
            plates with weights of their own, or a scalar.
        noise: Standard deviation of normal noise that is added to every second draw, site by
            site on the unconstrained scale and in its units. Discrete sites get none.

    Raises:
        ValueError: If `num_particles` is below 2, `log_z` unknown or `noise` negative; in use, if
            a site of a subsampled plate's model is not in the plate, if a draw has no density
            under the model, if noise has no continuous site, or if `log_z` has another shape.
        TypeError: If the guide has no site `log_z` for `"amortized"`.

    Example:
        >>> TrajectoryBalance(32, noise=2.0).noise
        2.0

    References:
        Lahlou and others (2023), arXiv:2301.12594; Malkin, Jain, Bengio, Sun and Bengio (2022),
        arXiv:2201.13259; for the variance Zhang, Rainone, Peschl and Bondesan (2023),
        arXiv:2302.05446, section 3.2.
    """

    def __init__(
        self,
        num_particles: int = 16,
        *,
        log_z: Literal["vargrad", "amortized"] = "vargrad",
        noise: float = 0.0,
    ) -> None:
        if log_z not in ("vargrad", "amortized"):
            raise ValueError(f"log_z: expected 'vargrad' or 'amortized', got {log_z!r}")
        if not 0.0 <= noise < float("inf"):
            raise ValueError(f"noise: expected a standard deviation, 0 or more, got {noise}")
        super().__init__(num_particles, least=2, noise=noise)
        self.log_z = log_z

    def level(self, guide_trace: Trace, shape: tuple[int, ...]) -> Array | None:
        """The value of the guide's site `log_z`; None without one.

        Args:
            guide_trace: A trace of the guide, with one particle.
            shape: Of the plate elements with weights of their own.
        """
        if self.log_z == "vargrad":
            return None
        site = guide_trace.get(_SITE)
        if site is None or site["type"] != "deterministic":
            raise TypeError(
                f"log_z='amortized': the guide has no deterministic site '{_SITE}'; its sites are "
                f"{list(guide_trace)}. Write numpyro.deterministic('{_SITE}', ...) in a guide of "
                "your own, or use log_z='vargrad', which needs none"
            )
        value: Array = site["value"]
        found = tuple(value.shape)
        if len(found) > len(shape) or any(
            size not in (1, elements)
            for size, elements in zip(reversed(found), reversed(shape), strict=False)
        ):
            raise ValueError(
                f"site '{_SITE}': expected a scalar or the shape {shape} of the plate elements "
                f"with weights of their own, got {found}"
            )
        return value
