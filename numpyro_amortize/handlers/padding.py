"""Padded plates under the host's own bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.primitives import Messenger


def mask_padding(fn: Callable[..., Any], true_sizes: Mapping[str, Array]) -> Callable[..., Any]:
    """Leaves the elements of plates that padding has added out of every density.

    Args:
        fn: A model or a guide, whose plates may be larger than they are.
        true_sizes: For each padded plate the number of its elements that exist; the others come
            after them.

    Returns:
        The model or guide, masked in addition to its own masks.
    """
    return _MaskPadding(fn, true_sizes)


class _MaskPadding(Messenger):
    def __init__(self, fn: Callable[..., Any], true_sizes: Mapping[str, Array]) -> None:
        super().__init__(fn)
        self.true_sizes = true_sizes

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mask one site along the padded ones of its plates."""
        if msg["type"] != "sample":
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.true_sizes:
                exists = jnp.arange(frame.size) < self.true_sizes[frame.name]
                msg["fn"] = msg["fn"].mask(exists.reshape((-1,) + (1,) * (-frame.dim - 1)))
