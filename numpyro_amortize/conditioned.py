"""A guide and its model at fixed data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.importance import ROWS_AT_ONCE, ImportanceSamples, importance_samples
from numpyro_amortize.measure import Call
from numpyro_amortize.missing import fill_missing_values, log_joint_of_present
from numpyro_amortize.padding import PaddedCall
from numpyro_amortize.simulate import replay

_jit_with_options: Any = eqx.filter_jit  # its types leave out what goes on to jax.jit


class ConditionedGuide:
    """The guide at one data set or at many.

    Its code is compiled for the padded call.

    Args:
        guide: The guide.
        params: Its parameters.
        call: Arguments of the model.
        padded: The same call, padded.
        observations: Data by site, with `batch_dims` leading axes.
        batch_dims: 1 if the data have a leading axis of data sets, else 0.
    """

    def __init__(
        self,
        guide: AnyGuide,
        params: Mapping[str, Any],
        call: Call,
        padded: PaddedCall,
        observations: Mapping[str, Array],
        *,
        batch_dims: int,
    ) -> None:
        self.guide, self.params, self.call = guide, params, call
        self.observations, self.batch_dims = dict(observations), batch_dims
        self._padded = padded
        self._extended = padded.extend(guide.structure, observations)

    def sample(self, num_samples: int, rng_key: Array) -> dict[str, Array]:
        """Draws of the latents, `(num_samples, [num_datasets,] *plates, *event)`."""
        draws = _sample(
            self.guide,
            self.params,
            self._padded.call,
            self._extended,
            self._padded.true_sizes,
            num_samples,
            self.batch_dims,
            rng_key,
        )
        return self._padded.cut(self.guide.structure, draws)

    def blocks(self, num_samples: int) -> list[tuple[int, int]]:
        """The first draw and the number of draws of blocks whose rows fit in memory.

        All have the same size, so that the last one may go beyond `num_samples`.
        """
        rows = sum(value.size for value in self.observations.values())
        most = max(ROWS_AT_ONCE // max(rows, 1), 1)
        num_blocks = -(-num_samples // most)
        size = -(-num_samples // num_blocks)
        return [(start, size) for start in range(0, num_samples, size)]

    def draw_with_density(self, num_samples: int, rng_key: Array) -> tuple[dict[str, Array], Array]:
        """Draws of the latents and their joint log density in the guide, in one block.

        Not inside of a jit: its code has compiler options of its own.

        Args:
            num_samples: Number of draws.
            rng_key: Key of the draws.

        Returns:
            Values as of `sample`, and densities as of `log_prob`, NaN if the guide has none.
        """
        values, log_probs = _draw_with_density(
            self.guide,
            self.params,
            self._padded.call,
            self._extended,
            self._padded.true_sizes,
            num_samples,
            self.batch_dims,
            rng_key,
        )
        structure = self.guide.structure
        log_probs = self._padded.cut(structure, log_probs, has_event=False)
        return self._padded.cut(structure, values), total(log_probs.values(), 1 + self.batch_dims)

    def log_prob(self, latents: Mapping[str, Array]) -> Array:
        """Joint log density of the guide, shape `(num_samples, [num_datasets])`, in nats."""
        return total(self.site_log_probs(latents).values(), 1 + self.batch_dims)

    def log_prob_once(self, latents: Mapping[str, Array]) -> Array:
        """`log_prob` by code that compiles in half of the time and runs slowly; not in a jit."""
        densities = _log_prob_once(
            self.guide,
            self.params,
            self._padded.call,
            self._repeated(self._extended, latents),
            self._padded.extend(self.guide.structure, latents),
            self._padded.true_sizes,
            1 + self.batch_dims,
        )
        densities = self._padded.cut(self.guide.structure, densities, has_event=False)
        return total(densities.values(), 1 + self.batch_dims)

    def site_log_probs(self, latents: Mapping[str, Array]) -> dict[str, Array]:
        """Log densities of the guide's sites, `(num_samples, [num_datasets,] *plates)`."""
        densities = _log_prob(
            self.guide,
            self.params,
            self._padded.call,
            self._repeated(self._extended, latents),
            self._padded.extend(self.guide.structure, latents),
            self._padded.true_sizes,
            1 + self.batch_dims,
        )
        return self._padded.cut(self.guide.structure, densities, has_event=False)

    def site_densities(self, latents: Mapping[str, Array]) -> dict[str, Array]:
        """Log densities of the model's sites, `(num_samples, [num_datasets,] *plates)`."""
        densities = _joint(
            self.guide,
            self.params,
            self._padded.call,
            self._padded.extend(self.guide.structure, latents),
            self._repeated(self._extended, latents),
            1 + self.batch_dims,
        )
        return self._padded.cut(self.guide.structure, densities, has_event=False)

    def importance_sample(
        self,
        num_samples: int,
        num_local_samples: int,
        defensive_fraction: float,
        rng_key: Array,
    ) -> ImportanceSamples:
        """Draws with their importance weights."""
        return importance_samples(
            self.guide,
            self.params,
            self._padded,
            self._extended,
            num_samples,
            num_local_samples,
            defensive_fraction,
            self.batch_dims,
            rng_key,
        )

    def replay(self, latents: Mapping[str, Array]) -> dict[str, Array]:
        """All sites of the model at given latents and these data; deterministic ones follow."""
        args, kwargs = self.call
        data = self._repeated(self.observations, latents)
        model, structure = self.guide.model, self.guide.structure
        values = {**latents, **fill_missing_values(model, structure, args, kwargs, data)}
        key = jax.random.key(0)  # nothing is left to draw
        return _replay(self.guide, self.params, self.call, values, 1 + self.batch_dims, key)

    def predict(self, latents: Mapping[str, Array], rng_key: Array) -> dict[str, Array]:
        """All sites of the model at given latents, with new data."""
        batch = 1 + self.batch_dims
        return _replay(self.guide, self.params, self.call, dict(latents), batch, rng_key)

    def inputs(self) -> dict[str, Array]:
        """Values of the inputs of the networks, with their plates first, in natural units."""
        values = self.guide.call_values(*self.call, self.observations, self.batch_dims)
        return dict(values.inputs)

    def _repeated(
        self, observations: Mapping[str, Array], latents: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The data, with the leading axis of the draws."""
        num = len(next(iter(latents.values())))
        return {
            name: jnp.broadcast_to(value, (num, *value.shape))
            for name, value in observations.items()
        }


@eqx.filter_jit
def _sample(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    observations: Mapping[str, Array],
    true_sizes: Mapping[str, Array],
    num_samples: int,
    batch_dims: int,
    rng_key: Array,
) -> dict[str, Array]:
    def draw(key: Array) -> dict[str, Array]:
        return guide.draw(
            params,
            *call,
            observations,
            batch_dims=batch_dims,
            true_sizes=true_sizes,
            rng_key=key,
        ).values

    rows = sum(value.size for value in observations.values())
    return jax.lax.map(
        draw,
        jax.random.split(rng_key, num_samples),
        batch_size=min(max(ROWS_AT_ONCE // rows, 1), num_samples),
    )


# Compiles in three quarters of the time, and runs no slower.
@_jit_with_options(compiler_options={"xla_backend_optimization_level": 1})
def _draw_with_density(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    observations: Mapping[str, Array],
    true_sizes: Mapping[str, Array],
    num_samples: int,
    batch_dims: int,
    rng_key: Array,
) -> tuple[dict[str, Array], dict[str, Array]]:
    own: dict[str, Any] = {"batch_dims": batch_dims, "true_sizes": true_sizes}

    def draw(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        draws = guide.draw(params, *call, observations, rng_key=key, **own)
        if isinstance(guide, EnsembleGuide):  # its draws know one member each
            return draws.values, guide.site_log_probs(
                params, *call, draws.values, observations, **own
            )
        return draws.values, draws.log_probs

    return jax.vmap(draw)(jax.random.split(rng_key, num_samples))


def _site_log_probs(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    observations: Mapping[str, Array],
    latents: Mapping[str, Array],
    true_sizes: Mapping[str, Array],
    batch_dims: int,
) -> dict[str, Array]:
    return guide.site_log_probs(
        params, *call, latents, observations, batch_dims=batch_dims, true_sizes=true_sizes
    )


_log_prob = eqx.filter_jit(_site_log_probs)
_FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
_log_prob_once = _jit_with_options(_site_log_probs, compiler_options=_FAST_TO_COMPILE)


def total(parts: Iterable[Array], batch_dims: int) -> Array:
    """The sum of densities of sites over everything but the batch axes."""
    flat = [part.reshape(*part.shape[:batch_dims], -1).sum(-1) for part in parts]
    return jnp.sum(jnp.stack(flat), axis=0)


@eqx.filter_jit
def _joint(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    latents: Mapping[str, Array],
    observations: Mapping[str, Array],
    batch_dims: int,
) -> dict[str, Array]:
    return log_joint_of_present(
        model_at(guide.model, params), guide.structure, *call, latents, observations, batch_dims
    )


@eqx.filter_jit
def _replay(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    values: Mapping[str, Array],
    batch_dims: int,
    rng_key: Array,
) -> dict[str, Array]:
    return replay(model_at(guide.model, params), *call, values, batch_dims, rng_key)
