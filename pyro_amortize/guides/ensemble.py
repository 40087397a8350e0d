"""The ensemble of guides: a mixture of amortized posteriors of one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyro_amortize.guides.amortized import AmortizedGuide
from pyro_amortize.guides.call import CallValues
from pyro_amortize.guides.draws import PlainDraws
from pyro_amortize.guides.host_plates import HostPlates
from pyro_amortize.guides.members import check_members, check_structures, check_weights
from pyro_amortize.guides.mixture import MixtureSteps, chain_rule, of_members, pick_members
from pyro_amortize.measure import Call
from pyro_amortize.standardisation import Moments
from pyro_amortize.structure import ModelStructure


@dataclass(frozen=True)
class EnsembleDraws:
    """Draws outside any handler, each from one member.

    Args:
        values: Constrained values by site.
        log_probs: Log densities of sites: of the mixture where values were given, of the member
            that drew them where they were not, in nats.
        log_tails: What the latter gain with heavy tails, see `draw_with_tails`.
        members: Number of the member of each draw and data set.
    """

    values: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    log_tails: dict[str, Tensor]
    members: Tensor


class EnsembleGuide(nn.Module):
    """Several amortized guides of one model as one: the mixture of their joint densities.

    `q(z | x) = sum_m w_m q_m(z | x)`. A draw picks one member for each data set and takes all
    sites from it; the log density is the logsumexp over members of the log weight and the
    member's joint log density. It goes wherever an `AmortizedGuide` goes that is not trained:
    `AmortizedPosterior`, the host's `Predictive` and `Importance`. `fit` trains each member by
    itself.

    Use it where simulations are few and fixed: members err in different places, and there their
    mixture is wider than each. Its expected divergence from the posterior is at most the mean
    of theirs. Avoid it where simulations are free: one guide that trains longer
    costs less to evaluate, and an error that all members share stays. The density of a site
    given those before it depends on all of its elements, so that the single elements of a plate
    have no densities of their own; `IWAE` and other objectives refuse an ensemble.

    Args:
        guides: Members, made for the same model with the same `observed`, `inputs`, `groups`,
            `sizes` and `missing`; networks, densities and parents may differ. Those not set up
            yet get initial weights of their own.
        weights: Positive weights of the members, scaled to sum to one; equal ones if None.

    Raises:
        TypeError: If a member is no `AmortizedGuide`.
        ValueError: If there is no member, one is there twice, weights do not fit, or members
            disagree on the model or its sites, naming what differs.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guides = [AmortizedGuide(model, observed="y") for _ in range(2)]
        >>> ensemble = EnsembleGuide(guides, weights=[3.0, 1.0]).setup()
        >>> ensemble.weights.tolist()
        [0.75, 0.25]
        >>> ensemble(y=torch.tensor(0.5))["z"].shape
        torch.Size([])

    References:
        Lakshminarayanan, Pritzel and Blundell (2017), arXiv:1612.01474; Hermans, Delaunoy and
        others (2022), arXiv:2110.06581, for ensembles of posterior estimators.
    """

    is_mixture = True  # which objectives refuse
    log_weights: Tensor

    def __init__(
        self, guides: Sequence[AmortizedGuide], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        members = check_members(guides)
        for number, guide in enumerate(members):
            guide.init_seed, guide.store_name = number, f"amortized_member_{number}"
        self.members = nn.ModuleList(members)
        self.weights = check_weights(weights, len(members))
        self.register_buffer(
            "log_weights", torch.as_tensor(self.weights, dtype=torch.get_default_dtype()).log()
        )
        self._observations: Mapping[str, Any] | None = None
        self._picked: Tensor | None = None
        self._agree = False

    @property
    def guides(self) -> tuple[AmortizedGuide, ...]:
        """The members."""
        return cast(tuple[AmortizedGuide, ...], tuple(self.members))

    @property
    def model(self) -> Callable[..., Any]:
        """The model that the guides were made for; its constants are kept wherever it runs."""
        return self.guides[0].model

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the sites that carry data."""
        return self.guides[0].observed

    @property
    def sizes(self) -> dict[str, str]:
        """Arguments of the model that are plate sizes, with their plates."""
        return self.guides[0].sizes

    @property
    def is_vectorized(self) -> bool:
        """Whether the model runs under outer plates, decided at set-up; until then not."""
        return self.guides[0].is_vectorized

    @property
    def structure(self) -> ModelStructure:
        """What the guides have read of the model; parents are those of the first.

        Raises:
            RuntimeError: If the guides have not been set up.
            ValueError: If they have read other sites of the model.
        """
        if not self._agree:
            check_structures([guide.structure for guide in self.guides])
            self._agree = True
        return self.guides[0].structure

    def setup(self, *args: Any, **kwargs: Any) -> EnsembleGuide:
        """Set up every member, once.

        Args:
            *args: Positional arguments of the model; data among them are not used.
            **kwargs: Keyword arguments of the model.

        Returns:
            The ensemble itself.

        Raises:
            ValueError: If the model cannot have a guide, or the members read other sites in it.
        """
        return self.setup_over([(args, kwargs)])

    def setup_over(self, calls: Sequence[Call]) -> EnsembleGuide:
        """`setup` with the standardisation measured over several calls of the model.

        Args:
            calls: Pairs of positional and keyword arguments.
        """
        for guide in self.guides:
            guide.setup_over(calls)
        _ = self.structure
        return self

    def bind(self, observations: Mapping[str, Any]) -> EnsembleGuide:
        """This guide with its data fixed, for hosts that call it with the data left out.

        Args:
            observations: Value of each observed site, `(*plates, *event)`.

        Returns:
            An ensemble of the same members.
        """
        bound = copy.copy(self)
        bound._observations = dict(observations)
        return bound

    def separate(self) -> EnsembleGuide:
        """A copy whose members have networks of their own."""
        own = copy.copy(self)
        members = nn.ModuleList([guide.separate() for guide in self.guides])
        own._modules = dict(self._modules) | {"members": members}
        return own

    def following(self, draws: EnsembleDraws) -> EnsembleGuide:
        """This guide for further draws that go on from others: each stays with its member.

        Args:
            draws: Draws, whose values of some sites are `given` in further ones.

        Returns:
            An ensemble of the same members. Its `draw` picks no member; the first axis of `draws`
            is then one of data sets.
        """
        own = copy.copy(self)
        own._picked = draws.members
        return own

    def forward(
        self, *args: Any, observations: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Sample every latent site, as a guide of the host.

        Args:
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            **kwargs: The model's keyword arguments.

        Returns:
            The latent values, constrained.

        Raises:
            ValueError: If data are missing or do not fit the model, or the call looks at some of
                the rows of a subsampled plate.
        """
        self.setup(*args, **kwargs)
        plates = HostPlates(self.model, self.structure, args, kwargs)
        found = self.find_observations(args, kwargs, observations, rows=plates.rows)
        call = self.call_values(args, kwargs, found, rows=plates.rows)
        for plate, factor in call.factors.items():
            if factor > 1:
                raise ValueError(
                    f"plate '{plate}': this call looks at a part of its rows, and which member a "
                    "draw is from depends on all of them. Call with a plate that is not subsampled"
                )
        name, parameter = next(iter(self.named_parameters()))
        pyro.param(f"ensemble$$${name}", parameter)  # SVI takes gradients if it sees a parameter
        plates.open(call.sizes)
        members = [guide.steps(args, kwargs, found, call, 0, plates.rows) for guide in self.guides]
        latents = MixtureSteps(members, self.log_weights, self.structure).run(plates.sample)
        plates.sample_unobserved(latents, found)
        return latents

    def find_observations(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Any] | None = None,
        batch_dims: int = 0,
        *,
        rows: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The data of a call: given, bound, or read by tracing the model.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site, or None.
            batch_dims: Number of leading axes of data sets.
            rows: For each subsampled plate the indices of its rows in this call.

        Returns:
            Value of each observed site.

        Raises:
            ValueError: If a site has no data, or data of a wrong shape, type or value.
        """
        given = self._observations if observations is None else observations
        return self.guides[0].find_observations(args, kwargs, given, batch_dims, rows=rows)

    def is_trained(self) -> bool:
        """Whether parameters of every member have moved since the networks were built."""
        return all(guide.is_trained() for guide in self.guides)

    def draw(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Tensor],
        *,
        num_samples: int,
        batch_dims: int = 0,
        given: Mapping[str, Tensor] | None = None,
        is_heavy: Tensor | None = None,
    ) -> EnsembleDraws:
        """Draws of the latents for each data set, outside any handler.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site with `batch_dims` leading axes.
            num_samples: Number of draws, a new leading axis.
            batch_dims: Number of leading axes of data sets.
            given: Values of some latents in place of draws, with `batch_dims` leading axes; for
                an ensemble that is `following` the draws they are from.
            is_heavy: Whether the noise of each draw has heavy tails; never if None.

        Returns:
            As `AmortizedGuide.draw`, with the member of each draw.

        Raises:
            ValueError: If values are given without the members that they are from.
        """
        if given and self._picked is None:
            raise ValueError(
                "given: expected an ensemble that knows which members these values are from, "
                "ensemble.following(draws)"
            )
        parts: list[PlainDraws] = [
            guide.draw(
                args,
                kwargs,
                observations,
                num_samples=num_samples,
                batch_dims=batch_dims,
                given=given,
                is_heavy=is_heavy,
            )
            for guide in self.guides
        ]
        if self._picked is None:
            batch_shape = next(iter(observations.values())).shape[:batch_dims]
            members = pick_members(self.log_weights, (num_samples, *batch_shape))
        else:
            members = self._picked[None]
        values: dict[str, Tensor] = dict(parts[0].values)
        log_probs: dict[str, Tensor] = {}
        log_tails: dict[str, Tensor] = {}
        log_weights = self.log_weights
        for site in self.structure.latents:
            name = site.name
            densities = [part.log_probs[name] for part in parts]
            if name in (given or {}):
                log_probs[name], log_weights = chain_rule(
                    log_weights, torch.stack(densities), 1 + batch_dims
                )
                continue
            values[name] = of_members([part.values[name] for part in parts], members)
            log_probs[name] = of_members(densities, members)
            log_tails[name] = of_members([part.log_tails[name] for part in parts], members)
        return EnsembleDraws(values, log_probs, log_tails, members)

    def site_log_probs(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor],
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
    ) -> dict[str, Tensor]:
        """Log density of every latent site at given values, given all that comes before it.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            latents: Constrained values with `batch_dims` leading axes.
            observations: Data by site with `batch_dims` leading axes, of length 1 where all share
                the data, which are then embedded once.
            batch_dims: Number of leading axes.
            conditionals: The model's location and scale at conditional sites, if already
                known from a simulation; read by tracing the model otherwise.

        Returns:
            Shape `(*batch, *aligned plates)` per site, in nats, constrained space. Over all sites
            and elements they add up to the log density of the mixture; one element alone is
            given the sites before and the elements before it.
        """
        parts = [
            guide.site_log_probs(
                args,
                kwargs,
                latents,
                observations,
                batch_dims=batch_dims,
                conditionals=conditionals,
            )
            for guide in self.guides
        ]
        log_weights, found = self.log_weights, {}
        for name in parts[0]:
            densities = torch.stack(torch.broadcast_tensors(*(part[name] for part in parts)))
            found[name], log_weights = chain_rule(log_weights, densities, batch_dims)
        return found

    def log_prob(
        self,
        latents: Mapping[str, Tensor],
        *args: Any,
        observations: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Joint log density of latents given one data set.

        Args:
            latents: Constrained values with one leading axis of draws.
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            **kwargs: The model's keyword arguments.

        Returns:
            Shape `(num_draws,)`, in nats, constrained space.
        """
        found = self.find_observations(args, kwargs, observations)
        num_draws = len(next(iter(latents.values())))
        once = {name: value[None] for name, value in found.items()}
        parts = self.site_log_probs(args, kwargs, latents, once, batch_dims=1)
        return torch.stack([part.reshape(num_draws, -1).sum(1) for part in parts.values()]).sum(0)

    def call_values(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Tensor],
        batch_dims: int = 0,
        rows: Mapping[str, Tensor] | None = None,
    ) -> CallValues:
        """What one call gives to the networks besides its data."""
        return self.guides[0].call_values(args, kwargs, observations, batch_dims, rows)


AnyGuide = AmortizedGuide | EnsembleGuide
