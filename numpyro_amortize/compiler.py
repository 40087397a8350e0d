"""A check that the compiler of this machine computes what it is told."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

_NUM_ROWS = 2000  # of 30 elements: more than 32,768, which is where it goes wrong


@cache
def check_compiler() -> None:
    """Raise if compiled sums over the last axis of a large array come out wrong.

    jaxlib 0.10.2 silently gives wrong values on CPUs from element 32,769 on, for a vectorised
    linear predictor divided by a scale, say: densities, weights and training would be wrong and
    look right.

    Raises:
        RuntimeError: If they do.

    References:
        https://github.com/jax-ml/jax/issues/39103
    """
    features = np.linspace(-1.0, 1.0, 90, dtype="float32").reshape(30, 3)
    slopes = np.linspace(0.5, 1.5, 3 * _NUM_ROWS, dtype="float32").reshape(_NUM_ROWS, 3)
    scales = np.linspace(1.0, 2.0, _NUM_ROWS, dtype="float32")

    def predict(slope: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.sum(features * slope, axis=-1) / scale

    compiled = np.asarray(jax.jit(jax.vmap(predict))(slopes, scales))
    if not np.allclose(compiled, slopes @ features.T / scales[:, None], atol=1e-4):
        raise RuntimeError(
            f"jax {jax.__version__}: its compiler gives wrong results on this machine "
            "(github.com/jax-ml/jax/issues/39103), so no posterior could be trusted. Install "
            "another jaxlib than 0.10.2, or set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= "
            "before jax is imported"
        )
