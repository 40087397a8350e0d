"""Several objectives for one guide at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from numpyro.infer.elbo import ELBO

from numpyro_amortize.objectives.npe import NPE


class Mixed(ELBO):
    """A weighted sum of objectives, a loss for `fit` and for the host's `SVI`.

    `L = sum_i w_i L_i` in nats, each part with draws of its own. If the guide can be the posterior
    of every data set, all parts have their optimum there, and so has the mixture; if it cannot, the
    weights say which error matters more. Use it to train on simulations and on real data at once:
    `NPE` covers all modes, a bound is sharp where the data are and trains parameters of the model.
    Avoid it where one part is enough: it costs as much as all of them together.

    Args:
        parts: The weight of each objective, above zero. At most one `NPE`; it sees the same
            arguments as the others, and simulates in place of the data in them.

    Raises:
        TypeError: If a part is no objective.
        ValueError: If there are no parts, more than one `NPE`, one that draws arguments itself, a
            mixture within the mixture, or a weight that is not positive and finite.

    Example:
        >>> from numpyro.infer import Trace_ELBO
        >>> [weight for _, weight in Mixed({NPE(): 0.8, Trace_ELBO(): 0.2}).parts]
        [0.8, 0.2]
    """

    def __init__(self, parts: Mapping[ELBO, float]) -> None:
        _check_parts(parts)
        super().__init__(num_particles=1)
        self.parts = tuple(parts.items())

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in the host's signature.

        Args:
            rng_key: Key of the draws.
            param_map: Parameters by name, constrained.
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            `{"loss": loss, "mutable_state": None}`.
        """
        keys = jax.random.split(rng_key, len(self.parts))
        losses = [
            weight * part.loss(key, param_map, model, guide, *args, **kwargs)
            for key, (part, weight) in zip(keys, self.parts, strict=True)
        ]
        return {"loss": sum(losses), "mutable_state": None}


def parts_of(objective: ELBO) -> tuple[tuple[ELBO, float], ...]:
    """The objectives that an objective sums, with their weights: itself, if it is no mixture."""
    return objective.parts if isinstance(objective, Mixed) else ((objective, 1.0),)


def simulating_part(objective: ELBO) -> NPE | None:
    """The part of an objective that simulates, or None."""
    return next((part for part, _ in parts_of(objective) if isinstance(part, NPE)), None)


def _check_parts(parts: Mapping[ELBO, float]) -> None:
    """Raise an error if objectives cannot be mixed with these weights."""
    if not parts:
        raise ValueError("parts: expected at least one objective with its weight, got none")
    for part, weight in parts.items():
        name = type(part).__name__
        if not isinstance(part, ELBO):
            raise TypeError(f"parts: expected objectives such as NPE() and IWAE(), got {part!r}")
        if isinstance(part, Mixed):
            raise ValueError(
                "parts: a mixture within a mixture (RWS is one); multiply the weights instead"
            )
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"parts: the weight of {name} is {weight}; expected a positive number")
    simulating = [part for part in parts if isinstance(part, NPE)]
    if len(simulating) > 1:
        raise ValueError("parts: more than one NPE; give one of them all the simulations")
    if simulating and simulating[0].model_args is not None:
        raise ValueError(
            "model_args: an NPE in a mixture sees the arguments of the other parts; give the "
            "sampler to fit(..., model_args=...)"
        )
