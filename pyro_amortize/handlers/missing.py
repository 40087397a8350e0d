"""Missing data under the host's own bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_amortize.tracing import is_factor, seeded


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
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model(y):
        ...     with pyro.plate("rows", 2):
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        >>> data = torch.tensor([0.0, torch.nan])
        >>> trace = poutine.trace(fill_missing(model)).get_trace(data)
        >>> trace.compute_log_prob()
        >>> trace.nodes["y"]["log_prob"].tolist()[1]
        0.0
    """
    return _FillMissing((optional,) if isinstance(optional, str) else tuple(optional))(fn)


class _FillMissing(Messenger):
    def __init__(self, optional: tuple[str, ...]) -> None:
        super().__init__()
        self.optional = optional

    def _pyro_sample(self, msg: Any) -> None:
        value, fn = msg["value"], msg["fn"]
        if msg["name"] in self.optional and not msg["is_observed"]:
            with torch.no_grad(), seeded(0):
                msg["value"] = fn.sample()
            msg["is_observed"], msg["mask"] = True, False
            return
        if not msg["is_observed"] or is_factor(msg) or not value.is_floating_point():
            return
        present = ~torch.isnan(value)
        if fn.event_dim:
            present = present.flatten(-fn.event_dim).all(-1)
        if bool(present.all()):
            return
        with torch.no_grad(), seeded(0):
            stand_in = fn.sample()
        where = present.reshape(present.shape + (1,) * fn.event_dim)
        msg["value"] = torch.where(where, value, stand_in.to(value.dtype))
        msg["mask"] = present if msg["mask"] is None else present & msg["mask"]
