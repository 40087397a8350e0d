"""A latent that a guide builds step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine.messenger import Messenger

from pyro_amortize.supports import site_bijection
from pyro_amortize.tracing import IS_PATH


def add_path(
    fn: Callable[..., Any], site: str, *, num_steps: int = 8, scale: float = 1.0
) -> Callable[..., Any]:
    """A path of auxiliary sites that ends at a latent, which a guide then builds step by step.

    Around a model: the sites `z_path_1, ..., z_path_{T-1}` are the states of a path from zero to
    the unconstrained value `u` of site `z`, in its plates. Their density given `u` is a Brownian
    bridge, walked backward,
    `s_t | s_{t+1} ~ N(s_{t+1} t / (t + 1), scale^2 t / ((t + 1) T))` with `s_T = u`,
    so that the posterior of `z` and the evidence are what they were. `AmortizedGuide` draws the
    path forward and `z` last: a continuous generative flow network, whose marginal at `z` may have
    several modes though each step is simple. Its trajectories balance under `TrajectoryBalance`;
    other objectives may train it too. Avoid it where a flow does: it has T densities in place of
    one, and only the joint density of path and latent is known.

    Args:
        fn: The model.
        site: Name of a continuous latent site.
        num_steps: Number of steps T, one more than there are auxiliary sites.
        scale: Standard deviation of the Brownian motion after all steps, in the units of `u`;
            about that of the prior, or of the distance between modes.

    Returns:
        The model with the path.

    Raises:
        ValueError: If `num_steps` is below 1 or `scale` not positive; in use, if the model has no
            such site, or one that is observed, discrete or cannot be mapped to the real line.

    Example:
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> from pyro_amortize import AmortizedGuide
        >>> guide = AmortizedGuide(add_path(model, "z", num_steps=3), observed="y").setup()
        >>> [site.name for site in guide.structure.latents]
        ['z_path_1', 'z_path_2', 'z']

    References:
        Lahlou and others (2023), arXiv:2301.12594; Zhang and Chen (2022), arXiv:2111.15141, for
        samplers that walk a reference bridge.
    """
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected a whole number of at least 1, got {num_steps!r}")
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"scale: expected a positive standard deviation, got {scale}")
    with_path: Callable[..., Any] = _AddPath(site, num_steps, scale)(fn)
    return with_path


class _AddPath(Messenger):
    def __init__(self, site: str, num_steps: int, scale: float) -> None:
        super().__init__()
        self.site, self.num_steps, self.scale = site, num_steps, scale
        self.end: Any = None  # the message of the site, which outer handlers may rename

    def __enter__(self) -> Any:
        self.end = None
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None and self.end is None:
            raise ValueError(
                f"site '{self.site}': the model has no such site, at which add_path could end"
            )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            check_site(msg)
            self.end = msg

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg is not self.end:
            return
        value = msg["value"]
        state = site_bijection(self.site, msg["fn"]).inv(value)
        event_dim = state.ndim - value.ndim + msg["fn"].event_dim
        mark: Any = {IS_PATH: True}
        for step in range(self.num_steps - 1, 0, -1):
            rest = step / (step + 1)
            bridge = dist.Normal(rest * state, self.scale * math.sqrt(rest / self.num_steps))
            name = f"{self.site}_path_{step}"
            state = pyro.sample(name, bridge.to_event(event_dim), infer=mark)


def check_site(msg: Any) -> None:
    """Raise a ValueError if a path cannot end at a site."""
    name = msg["name"]
    if msg["is_observed"]:
        raise ValueError(
            f"site '{name}': carries data or a value of its own, and add_path needs a latent site"
        )
    if msg["fn"].support.is_discrete:
        raise ValueError(
            f"site '{name}': is discrete, and the path of add_path is continuous. A guide draws "
            "discrete sites without one"
        )
