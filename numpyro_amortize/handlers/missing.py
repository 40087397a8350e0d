"""Missing data under the host's own bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger


def fill_missing(
    fn: Callable[..., Any], *, optional: str | Sequence[str] = ()
) -> Callable[..., Any]:
    """Leaves NaN in observed data out of the likelihood, with finite gradients.

    Around a model, as `SVI(fill_missing(model), guide, ...)`: every observed value that is NaN
    gives way to a draw of its own distribution and is masked, in addition to the model's own
    masks. An event counts as missing as a whole if part of it is. `fit` does it by itself for
    guides made with `missing=` or with alternatives in `observed=`.

    Args:
        fn: The model.
        optional: Sites that carry data in some calls only: without data they are left out.

    Returns:
        The model with its missing data left out.

    Example:
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro import handlers
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(0), obs=y)
        >>> trace = handlers.trace(fill_missing(model)).get_trace(jnp.array([0.0, jnp.nan]))
        >>> trace["y"]["fn"].log_prob(trace["y"]["value"]).tolist()[1]
        0.0
    """
    return _FillMissing(fn, (optional,) if isinstance(optional, str) else tuple(optional))


class _FillMissing(Messenger):
    def __init__(self, fn: Callable[..., Any], optional: tuple[str, ...]) -> None:
        super().__init__(fn)
        self.optional = optional

    def process_message(self, msg: dict[str, Any]) -> None:
        """Fill and mask one observed site."""
        if msg["type"] != "sample":
            return
        if msg["name"] in self.optional and not (msg["is_observed"] and msg["value"] is not None):
            msg["value"] = jax.lax.stop_gradient(msg["fn"].sample(jax.random.key(0)))
            msg["is_observed"], msg["fn"] = True, msg["fn"].mask(mask=False)
            return
        if not msg["is_observed"] or msg["value"] is None:
            return
        value = jnp.asarray(msg["value"])
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return
        fn = msg["fn"]
        present = jnp.all(~jnp.isnan(value), axis=tuple(range(-fn.event_dim, 0)))
        stand_in = jax.lax.stop_gradient(fn.sample(jax.random.key(0)))
        where = present.reshape(present.shape + (1,) * fn.event_dim)
        msg["value"] = jnp.where(where, value, stand_in)
        msg["fn"] = fn.mask(present)
