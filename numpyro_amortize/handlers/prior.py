"""The prior of a model alone, and its model given draws of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax import Array
from numpyro.primitives import Messenger


@dataclass(frozen=True)
class PriorOnly:
    """A model that ends as soon as all its latent sites are drawn: nothing is simulated from them.

    Args:
        model: The user's model.
        latents: Names of its latent sites.
    """

    model: Callable[..., Any]
    latents: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the model as far as its last latent site."""
        try:
            with _Until(self.latents):
                self.model(*args, **kwargs)
        except _AllDrawn:
            pass


class GivenLatents(Messenger):
    """Puts values in the place of draws, and counts on nobody else doing so.

    Args:
        values: Values by site, in the host's layout.
    """

    def __init__(self, values: Mapping[str, Array]) -> None:
        super().__init__()
        self.values = dict(values)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the value of one site."""
        if msg["type"] == "sample" and msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Look whether it is still there."""
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        given = self.values.get(msg["name"])
        if given is not None and msg["value"] is not given:
            raise ValueError(
                f"site '{msg['name']}': its value is set from outside of truncated_prior, as "
                "bounds such as Trace_ELBO do. A truncated prior is for simulating, with NPE; its "
                "density is not known. Give a bound the model itself"
            )


class _AllDrawn(Exception):  # noqa: N818
    """The rest of a model is not wanted."""


class _Until(Messenger):
    """Stops a model once these sites are drawn."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.left = set(names)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            self.left.discard(msg["name"])
            if not self.left:
                raise _AllDrawn
