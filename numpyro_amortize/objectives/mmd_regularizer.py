"""NPE with a penalty on the distance of the contexts of simulations from a standard normal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.objectives.npe import NPE, Drawn, means
from numpyro_amortize.objectives.penalised_npe import PenalisedNPE
from numpyro_amortize.summaries import are_learned, summaries

_NORMAL = 2**31 - 3  # beside the key of losses that are random


class MMDRegularizer(PenalisedNPE):
    """NPE that shapes the guide's contexts, a loss for `fit` and for the host's `SVI`.

    `loss = L_NPE + weight MMD^2(h(x), N(0, I))`, the squared maximum mean discrepancy between the
    contexts `h(x)` of the simulations of a step and as many standard normal vectors; without a
    unit, between 0 and 2 but for noise. The kernel is the mean of `exp(-|a - b|^2 / (2 w^2 C))`
    over the bandwidths w, with C the number of coordinates; the form is the unbiased one. Contexts
    are those of `Posterior.contexts`, all of them that networks make: moments and counts that
    skip these, and spreads over the elements of plates, are what they are. The gradient reaches
    the embedding alone. Held-out losses are those of NPE.
    Use it for contexts of a known form, to measure distances or to draw in them. Avoid it where
    answers are all that counts; `Posterior.diagnose` does not need it to tell foreign data, since
    its p-values are ranks among simulations. Take 64 simulations per step or more. Contexts of
    more coordinates than data do not become normal, only nearer to it.

    Args:
        npe: What it adds to: simulations, arguments and what is missing are those of this `NPE`.
        weight: Weight of the discrepancy, from 0 on; 0 is `npe`.
        bandwidths: Widths w of the kernels, fixed; two standard normal vectors are `2 C` apart,
            squared, in the mean. Without wide ones contexts far out are driven further.

    Raises:
        TypeError: If `npe` is no `NPE`.
        ValueError: If `npe` has one simulation per step, or a number is out of range.

    Example:
        >>> MMDRegularizer(NPE(256)).weight
        1.0

    References:
        Schmitt, Buerkner, Koethe and Radev (2023), Detecting model misspecification in amortized
        Bayesian inference with neural networks, arXiv:2112.08866, whose regulariser this is;
        Gretton and others (2012), A kernel two-sample test, equation 3, for the unbiased form.
    """

    def __init__(
        self,
        npe: NPE,
        weight: float = 1.0,
        *,
        bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
    ) -> None:
        super().__init__(npe)
        if npe.num_simulations < 2:
            raise ValueError(
                "npe: expected at least 2 simulations per step, between which the discrepancy is "
                f"measured, got {npe.num_simulations}; take 64 or more"
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"weight: expected a number from 0 on, got {weight}")
        widths = tuple(bandwidths)
        if not widths or not all(width > 0 and math.isfinite(width) for width in widths):
            raise ValueError(f"bandwidths: expected positive numbers, got {widths}")
        self.weight, self.bandwidths = weight, widths

    def _training_losses(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> tuple[dict[str, Array], Array]:
        """The mean loss of each latent site and the penalty, and which simulations are finite."""
        losses, drawn = self._row_losses(rng_key, param_map, model, guide, call, None)
        found = means(losses, drawn.is_used)
        if self.weight:
            penalty = self.weight * self._discrepancy(param_map, guide, drawn)
            found["MMD penalty"] = jnp.where(self._is_held_out, 0.0, penalty)
        return found, drawn.is_finite

    def _discrepancy(self, param_map: Mapping[str, Any], guide: Any, drawn: Drawn) -> Array:
        """The squared discrepancy of the contexts of simulations from a standard normal."""
        (args, kwargs), data = drawn.call, drawn.observations
        values = guide.call_values(args, kwargs, data, 1, self._true_sizes)
        contexts = guide.steps(param_map, args, kwargs, data, values, 1).contexts
        rows = summaries(guide.structure, contexts)
        is_learned = np.array(are_learned(guide.structure, contexts))
        learned, key = rows[:, is_learned], jax.random.fold_in(drawn.key, _NORMAL)
        normal = jax.random.normal(key, learned.shape, learned.dtype)
        return squared_mmd(learned, normal, drawn.is_used, self.bandwidths)


def squared_mmd(
    contexts: Array, normal: Array, is_used: Array, bandwidths: Sequence[float]
) -> Array:
    """The squared discrepancy of two samples, without pairs of a row and itself: unbiased.

    Args:
        contexts: Shape `(num, size)`.
        normal: The other sample, of the same shape.
        is_used: Which rows of both count, shape `(num,)`.
        bandwidths: Widths in units of the root of the number of coordinates.

    Returns:
        A number; 0 if fewer than two rows count.
    """
    exists, size = is_used.astype(contexts.dtype), contexts.shape[1]
    pairs = exists[:, None] * exists
    apart = pairs - jnp.diag(exists)

    def mean_kernel(first: Array, second: Array, weights: Array) -> Array:
        squares = jnp.sum(first**2, axis=-1)[:, None] + jnp.sum(second**2, axis=-1)
        distances = jnp.maximum(squares - 2 * first @ second.mT, 0.0) / size
        kernels = [jnp.exp(-0.5 * distances / width**2) for width in bandwidths]
        return jnp.sum(weights * sum(kernels)) / (len(kernels) * jnp.maximum(jnp.sum(weights), 1.0))

    own, others = mean_kernel(contexts, contexts, apart), mean_kernel(normal, normal, apart)
    found = own + others - 2 * mean_kernel(contexts, normal, pairs)
    return jnp.where(jnp.sum(exists) > 1, found, 0.0)
