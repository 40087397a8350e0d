"""Markov chains: whether they agree, how many independent draws they are worth, what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_LARGEST_RHAT = 1.01
_LEAST_ESS = 100  # for each chain


@dataclass(frozen=True, eq=False)
class ChainSummary:
    """What several Markov chains say about their own convergence.

    `print(summary)` says it in words. Chains that agree may have missed the same mode.

    Args:
        num_chains: Number of chains.
        num_samples: Number of draws of each.
        rhat: Rank-normalised split R-hat by variable, NaN where a variable is constant.
        ess: Bulk effective sample size by variable, likewise.
        tail_ess: Effective sample size for the 5 % and 95 % quantiles, by variable.
        num_divergent: Number of divergent transitions.
        num_gradients: Number of gradient evaluations of all chains together, warm-up included;
            None if unknown.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
        >>> print(chain_summary({"z": draws}, num_gradients=12_000))
        4 chains of 1,000 draws, 12,000 gradient evaluations.
        R-hat: at most 1.000 (z), expected below 1.01.
        ESS: at least 3,926 in the bulk (z), 4,028 in the tails (z), expected above 400.
        Divergences: 0.
        Verdict: the chains agree.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
        localization: an improved R-hat, Bayesian Analysis 16; for the limits, section 4.
    """

    num_chains: int
    num_samples: int
    rhat: dict[str, Array]
    ess: dict[str, Array]
    tail_ess: dict[str, Array]
    num_divergent: int
    num_gradients: int | None

    @property
    def lowest_ess(self) -> float:
        """The smallest bulk effective sample size of any variable."""
        return _extreme(self.ess, np.nanmin)[0]

    @property
    def gradients_per_ess(self) -> float:
        """Gradient evaluations for each effective draw, of the variable that has fewest."""
        return np.nan if self.num_gradients is None else self.num_gradients / self.lowest_ess

    def __str__(self) -> str:
        """The numbers and the verdict in words."""
        rhat, where = _extreme(self.rhat, np.nanmax)
        ess, lowest = _extreme(self.ess, np.nanmin)
        tail, lowest_tail = _extreme(self.tail_ess, np.nanmin)
        least = _LEAST_ESS * self.num_chains
        cost = (
            "" if self.num_gradients is None else f", {self.num_gradients:,} gradient evaluations"
        )
        return "\n".join(
            [
                f"{self.num_chains} chains of {self.num_samples:,} draws{cost}.",
                f"R-hat: at most {rhat:.3f} ({where}), expected below {_LARGEST_RHAT}.",
                f"ESS: at least {ess:,.0f} in the bulk ({lowest}), {tail:,.0f} in the tails "
                f"({lowest_tail}), expected above {least}.",
                f"Divergences: {self.num_divergent:,}.",
                f"Verdict: {self._verdict(rhat, min(ess, tail))}",
            ]
        )

    def _verdict(self, rhat: float, ess: float) -> str:
        if not rhat < _LARGEST_RHAT:
            return "the chains do not agree: run longer, or look for separate modes."
        if self.num_divergent:
            return (
                "some transitions diverged, so that a region may be missing: a higher "
                "target_accept_prob, another parametrisation of the model, or a better guide."
            )
        if not ess > _LEAST_ESS * self.num_chains:
            return "the chains agree, with few effective draws: more num_samples."
        return "the chains agree."


def chain_summary(
    draws: Mapping[str, ArrayLike],
    *,
    num_divergent: int = 0,
    num_gradients: int | None = None,
) -> ChainSummary:
    """Judge Markov chains by their draws.

    R-hat compares the spread between halves of chains with that inside of them, after a rank
    transform; the effective sample size is the number of independent draws of equal worth.

    Use it for chains from anywhere. It needs no density.

    Args:
        draws: By variable, shape `(num_chains, num_samples, ...)`.
        num_divergent: Number of divergent transitions, if the sampler tells.
        num_gradients: Number of gradient evaluations, if the sampler tells.

    Returns:
        The summary.

    Raises:
        ValueError: If there are no variables, if they differ in their leading axes, if there are
            fewer than four draws, or if a draw is not finite.

    Example:
        >>> halves = np.linspace(0.0, 1.0, 200).reshape(2, 100)
        >>> bool(chain_summary({"z": halves}).rhat["z"] > 1.5)
        True

    References:
        See `ChainSummary`.
    """
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in draws.items()}
    leading = {value.shape[:2] for value in arrays.values()}
    if len(leading) != 1 or len(next(iter(leading))) < 2 or next(iter(leading))[1] < 4:
        raise ValueError(
            "draws: expected arrays of one common shape (num_chains, num_samples, ...) with at "
            f"least 4 draws, got { ({name: value.shape for name, value in arrays.items()}) }"
        )
    for name, value in arrays.items():
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"draws of '{name}': expected finite numbers, got "
                f"{np.count_nonzero(~np.isfinite(value))} that are not. Look for a density that "
                "overflows"
            )
    num_chains, num_samples = next(iter(leading))
    axes = {"chain_axis": 0, "draw_axis": 1}
    moving = {name: np.ptp(value, axis=(0, 1)) > 0 for name, value in arrays.items()}

    def each(measure: Callable[[Array], Any]) -> dict[str, Array]:
        return {
            name: np.where(moving[name], measure(value), np.nan) for name, value in arrays.items()
        }

    with np.errstate(divide="ignore", invalid="ignore"):
        return ChainSummary(
            num_chains,
            num_samples,
            rhat=each(lambda value: array_stats.rhat(value, **axes)),
            ess=each(lambda value: array_stats.ess(value, method="bulk", **axes)),
            tail_ess=each(
                lambda value: array_stats.ess(value, method="tail", prob=(0.05, 0.95), **axes)
            ),
            num_divergent=int(num_divergent),
            num_gradients=num_gradients,
        )


def _extreme(values: Mapping[str, Array], pick: Callable[[Array], Any]) -> tuple[float, str]:
    """The extreme value of all variables, and where it is."""
    found = {
        name: float(pick(value)) for name, value in values.items() if not np.all(np.isnan(value))
    }
    if not found:
        return np.nan, "none moves"
    name = min(found, key=lambda key: found[key] if pick is np.nanmin else -found[key])
    return found[name], name
