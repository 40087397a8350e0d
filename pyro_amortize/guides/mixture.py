"""A mixture of guides: its density by the chain rule, and the host's distributions of its sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_amortize.guides.steps import SiteSteps
from pyro_amortize.structure import ModelStructure, SiteInfo


def chain_rule(log_weights: Tensor, log_probs: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Log density of each element of a site in a mixture, given all that comes before it.

    `log sum_m w_m q_m(z_e | z_<e)`, where the weight of a member is that of its own density of
    what comes before, `w_m prop. w_m q_m(z_<e)`. The elements add up to the log density of the
    mixture of the members' joint densities, which one element alone does not know.

    Args:
        log_weights: Log weight of each member given the sites before, `(num_members, *batch)`.
        log_probs: Log densities of the members, `(num_members, *batch, *elements)`.
        batch_dims: Number of batch axes of the latter; the former may lack the first of them.

    Returns:
        The log densities, `(*batch, *elements)` in nats, elements in row-major order; and the log
        weights given this site too, `(num_members, *batch)`.
    """
    num_members, shape = len(log_probs), log_probs.shape[1:]
    flat = log_probs.reshape(num_members, *shape[:batch_dims], -1)
    lacking = batch_dims + 1 - log_weights.ndim
    log_weights = log_weights.reshape(num_members, *[1] * lacking, *log_weights.shape[1:])
    log_weights = log_weights.expand(flat.shape[:-1])[..., None]
    best = flat.amax(0)
    # Members relative to the best of them: numbers of which sums keep their digits.
    relative = flat - torch.where(best.isfinite(), best, 0.0)
    given = torch.cat([log_weights, log_weights + relative.cumsum(-1)], -1)
    densities = torch.logsumexp(_normalised(given[..., :-1]) + flat, 0)
    return densities.reshape(shape), _normalised(given[..., -1])


def _normalised(log_weights: Tensor) -> Tensor:
    """Log weights that sum to one over the first axis; -inf where no member has any."""
    total = torch.logsumexp(log_weights, 0)
    return torch.where(total == -torch.inf, -torch.inf, log_weights - total)


def pick_members(log_weights: Tensor, batch_shape: Sequence[int]) -> Tensor:
    """Number of a member for each row of a batch, drawn by their log weights.

    Args:
        log_weights: Log weights `(num_members, *batch)`, which may lack the first batch axes.
        batch_shape: The batch.
    """
    logits = torch.movedim(log_weights, 0, -1).expand(*batch_shape, len(log_weights))
    return Categorical(logits=logits).sample()


def of_members(values: Sequence[Tensor], members: Tensor) -> Tensor:
    """For each row of a batch the value of its member.

    Args:
        values: For each member `(*batch, ...)`.
        members: Numbers of members, `(*batch,)`; axes of length 1 stand for all rows.
    """
    stacked = torch.stack(list(values))
    index = members.reshape(1, *members.shape, *[1] * (stacked.ndim - 1 - members.ndim))
    return torch.take_along_dim(stacked, index, 0)[0]


class MemberMixture(TorchDistribution):
    """A site of an ensemble for the host: all elements of its plates come from one member.

    `log_prob` has one number for each element, its log density given the elements before it.

    Args:
        members: The members' distributions of the site.
        log_weights: Log weights of the members given the sites before, `(num_members, *batch)`.
        nesting: Number of plate dimensions; axes to the left of them are a batch of draws.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, members: Sequence[Any], log_weights: Tensor, nesting: int) -> None:
        self.members, self.log_weights, self.nesting = tuple(members), log_weights, nesting
        batch_shape = torch.broadcast_shapes(*(each.batch_shape for each in members))
        super().__init__(batch_shape, members[0].event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """The constraint of the site."""
        return self.members[0].support

    def expand(self, batch_shape: Any, _instance: Any = None) -> MemberMixture:
        """The same mixture with more batch axes; a member is drawn for each place along them."""
        members = [each.expand(torch.Size(batch_shape)) for each in self.members]
        return MemberMixture(members, self.log_weights, self.nesting)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, *event)`, constrained."""
        with torch.no_grad():
            values = [each.sample(torch.Size(sample_shape)) for each in self.members]
            values = list(torch.broadcast_tensors(*values))
            rows = len(torch.Size(sample_shape)) + self._row_dims(len(self.batch_shape))
            return of_members(values, pick_members(self.log_weights, values[0].shape[:rows]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape `(*batch,)`. Its gradient is refused."""
        return _Ungradable.apply(self._chain_rule(value)[0])

    def weights_given(self, value: Tensor) -> Tensor:
        """Log weights of the members given a value of this site too."""
        return self._chain_rule(value)[1]

    def _chain_rule(self, value: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.broadcast_tensors(*(each.log_prob(value) for each in self.members))
        rows = self._row_dims(log_probs[0].ndim)
        return chain_rule(self.log_weights, torch.stack(log_probs), rows)

    def _row_dims(self, num_dims: int) -> int:
        return max(num_dims - self.nesting, 0)


class MixtureSteps:
    """The conditional distributions of a mixture, each given the values taken before.

    Args:
        members: The members at the call.
        log_weights: Log weight of each.
        structure: The structure of the model.
    """

    def __init__(
        self, members: Sequence[SiteSteps], log_weights: Tensor, structure: ModelStructure
    ) -> None:
        self._members, self._log_weights = members, log_weights
        self._structure = structure

    def run(self, draw: Callable[[SiteInfo, Any], Tensor]) -> dict[str, Tensor]:
        """Go through all sites; the values that `draw` gives for their distributions."""
        for site in self._structure.latents:
            distributions = [each.distribution(site) for each in self._members]
            nesting = self._structure.max_plate_nesting
            mixture = MemberMixture(distributions, self._log_weights, nesting)
            value = draw(site, mixture)
            for each in self._members:
                each.take(site, value)
            self._log_weights = mixture.weights_given(value)
        return self._members[0].latents


class _Ungradable(torch.autograd.Function):
    """The identity, of which there is no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise TypeError(
            "EnsembleGuide: a draw comes from one member, so that no gradient reaches the others. "
            "Train the members: fit(model, ensemble, objective), or SVI on each of ensemble.guides"
        )
