"""A guide and its model at fixed data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.importance import ROWS_AT_ONCE, ImportanceSamples, importance_samples
from pyro_amortize.measure import Call
from pyro_amortize.missing import fill_missing_values, log_joint_of_present
from pyro_amortize.simulate import replay


class ConditionedGuide:
    """The guide at one data set or at many.

    Args:
        guide: The guide.
        call: Arguments of the model.
        observations: Data by site, with `batch_dims` leading axes.
        batch_dims: 1 if the data have a leading axis of data sets, else 0.
    """

    def __init__(
        self,
        guide: AnyGuide,
        call: Call,
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int,
    ) -> None:
        args, kwargs = call
        self.guide, self.call = guide, (tuple(args), dict(kwargs))
        self.observations, self.batch_dims = dict(observations), batch_dims

    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of the latents, `(num_samples, [num_datasets,] *plates, *event)`."""
        parts = [
            self.guide.draw(
                *self.call, self.observations, num_samples=size, batch_dims=self.batch_dims
            ).values
            for _, size in _blocks(num_samples, self._rows_of_a_draw())
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def blocks(self, num_samples: int) -> list[tuple[int, int]]:
        """The first draw and the number of draws of blocks whose rows fit in memory."""
        return _blocks(num_samples, sum(value.numel() for value in self.observations.values()))

    def draw_with_density(self, num_samples: int) -> tuple[dict[str, Tensor], Tensor]:
        """Draws of the latents and their joint log density in the guide, in one block.

        Args:
            num_samples: Number of draws.

        Returns:
            Values as of `sample`, and densities as of `log_prob`, NaN if the guide has none.
        """
        draws = self.guide.draw(
            *self.call, self.observations, num_samples=num_samples, batch_dims=self.batch_dims
        )
        log_probs: Mapping[str, Tensor] = draws.log_probs
        if isinstance(self.guide, EnsembleGuide):  # its draws know one member each
            once = {name: value[None] for name, value in self.observations.items()}
            log_probs = self.guide.site_log_probs(
                *self.call, draws.values, once, batch_dims=1 + self.batch_dims
            )
        return draws.values, total(log_probs.values(), 1 + self.batch_dims)

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of the guide, shape `(num_samples, [num_datasets])`, in nats."""
        return total(self.site_log_probs(latents).values(), 1 + self.batch_dims)

    def site_log_probs(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log densities of the guide's sites, `(num_samples, [num_datasets,] *plates)`."""
        return self.guide.site_log_probs(
            *self.call, latents, self._repeated(latents), batch_dims=1 + self.batch_dims
        )

    def site_densities(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log densities of the model's sites, `(num_samples, [num_datasets,] *plates)`."""
        return log_joint_of_present(
            self.guide.model,
            self.guide.structure,
            *self.call,
            latents,
            self._repeated(latents),
            1 + self.batch_dims,
            is_vectorized=self.guide.is_vectorized,
        )

    def importance_sample(
        self, num_samples: int, num_local_samples: int, defensive_fraction: float
    ) -> ImportanceSamples:
        """Draws with their importance weights."""
        return importance_samples(
            self.guide,
            self.call,
            self.observations,
            num_samples,
            num_local_samples,
            defensive_fraction,
            self.batch_dims,
        )

    def replay(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All sites of the model at given latents and these data; deterministic ones follow."""
        data = self._repeated(latents)
        filled = fill_missing_values(self.guide.model, self.guide.structure, *self.call, data)
        return self.predict({**latents, **filled})

    @torch.no_grad()
    def predict(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All sites of the model at given latents, with new data."""
        return replay(
            self.guide.model,
            *self.call,
            latents,
            1 + self.batch_dims,
            is_vectorized=self.guide.is_vectorized,
        )

    def inputs(self) -> dict[str, Tensor]:
        """Values of the inputs of the networks, with their plates first, in natural units."""
        values = self.guide.call_values(*self.call, self.observations, self.batch_dims)
        return dict(values.inputs)

    def _rows_of_a_draw(self) -> int:
        """Rows of network inputs that a draw adds, at most; its data are read once for all."""
        latents = self.guide.structure.latents
        if any(site.plates or site.is_conditional for site in latents):
            return sum(value.numel() for value in self.observations.values())
        return len(next(iter(self.observations.values()))) if self.batch_dims else 1

    def _repeated(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The data, with the leading axis of the draws."""
        num = len(next(iter(latents.values())))
        return {name: value.expand(num, *value.shape) for name, value in self.observations.items()}


def _blocks(num_samples: int, rows: int) -> list[tuple[int, int]]:
    """The first draw and the number of draws of blocks, at so many rows a draw."""
    size = max(ROWS_AT_ONCE // max(rows, 1), 1)
    return [(start, min(size, num_samples - start)) for start in range(0, num_samples, size)]


def total(parts: Iterable[Tensor], batch_dims: int) -> Tensor:
    """The sum of densities of sites over everything but the batch axes."""
    flat = [part.reshape(*part.shape[:batch_dims], -1).sum(-1) for part in parts]
    return torch.stack(flat).sum(0)
