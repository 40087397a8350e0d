"""Neural posterior estimation: the forward divergence on the model's own simulations."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_amortize.arguments import bound_arguments, drawn_call
from pyro_amortize.layout import pack
from pyro_amortize.missing import check_hiding, hide_some, mark_missing
from pyro_amortize.objectives.bank import (
    check_bank,
    check_constants,
    draw_rows,
    held_out_rows,
    nonfinite_message,
)
from pyro_amortize.objectives.gradients import check_single
from pyro_amortize.obs_mask import JoinedModel
from pyro_amortize.simulate import Simulations, finite_rows, simulate, simulate_rows
from pyro_amortize.standardisation import Moments
from pyro_amortize.structure import ModelStructure
from pyro_amortize.tracing import keep_fixed, subsample_sizes

_BANK_SIZE = 10_000  # of a model that cannot be vectorised


class ScoresLatents(Protocol):
    """What NPE needs of a guide: its structure, and what training at given values makes small."""

    vectorization_problem: str | None

    @property
    def model(self) -> Callable[..., Any]:
        """The model of the guide."""

    @property
    def structure(self) -> ModelStructure:
        """What the guide has read of the model."""

    def setup(self, *args: Any, **kwargs: Any) -> Any:
        """Read the model once."""

    def register(self) -> None:
        """Put the networks into the host's parameter store."""

    def site_losses(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor],
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
    ) -> dict[str, Tensor]:
        """Minus the log density of every latent site at given values, or a loss in its place."""


class Drawn(NamedTuple):
    """Simulations of one step.

    Args:
        call: The arguments of the model.
        latents: Latents by site, one row for each simulation.
        observations: Data by site as the guide may see them.
        moments: The model's location and scale at conditional sites, or None.
        is_used: Which rows count.
        is_finite: Which are finite.
    """

    call: tuple[tuple[Any, ...], dict[str, Any]]
    latents: dict[str, Tensor]
    observations: dict[str, Tensor]
    moments: Any
    is_used: Tensor
    is_finite: Tensor


class NPE(ELBO):
    """Neural posterior estimation, a loss for `fit` and for the host's `SVI`.

    `loss = -E_{p(z, x)} sum_i log q(z_i | x) / n_i` in nats, with `n_i` the number of plate
    elements of site i: the minimiser is that of the joint density, and global sites are not
    outvoted. The minimum is the mean posterior entropy, not zero. A density with a loss of its own,
    such as `FlowMatchingDensity`, has that in place of `-log q(z_i | x)`. Every step draws fresh
    simulations; the data in the model's arguments are not used, and parameters of the model
    are not trained. Use it whenever the model can be simulated; it covers every mode. Avoid
    it when one data set far out in the prior predictive is all that matters.

    Args:
        num_simulations: Simulations per step.
        model_args: Draws the model's arguments for each step, `model_args()`: a tuple of
            positional or a dict of keyword arguments.
        simulations: A fixed bank of simulations, used in place of fresh ones; every tenth
            row is held out. A model that cannot be vectorised gets one by itself.
        nonfinite: `"raise"` stops when a simulation is not finite; `"drop"` leaves it out of
            the loss and counts it, which keeps the posterior of finite data right. Draws that
            rounding puts on the boundary of a support are always left out.
        missing: For guides made with `missing=`: the largest fraction of values that is hidden
            from the guide, drawn anew between zero and it for each simulation; or a function
            `missing(site, shape)` that returns True where values are hidden.

    Raises:
        ValueError: If `num_simulations` is below 1, both sources are given, or the bank has
            too few finite simulations.

    Example:
        >>> NPE(num_simulations=256).num_simulations
        256

    References:
        Papamakarios and Murray (2016), arXiv:1605.06376, proposition 1.
    """

    def __init__(
        self,
        num_simulations: int = 128,
        *,
        model_args: Callable[[], tuple[Any, ...] | dict[str, Any]] | None = None,
        simulations: Simulations | None = None,
        nonfinite: Literal["raise", "drop"] = "raise",
        missing: float | Callable[[str, tuple[int, ...]], Tensor] = 0.0,
    ) -> None:
        if num_simulations < 1:
            raise ValueError(f"num_simulations: expected at least 1, got {num_simulations}")
        if nonfinite not in ("raise", "drop"):
            raise ValueError(f"nonfinite: expected 'raise' or 'drop', got {nonfinite!r}")
        if simulations is not None and model_args is not None:
            raise ValueError(
                "simulations: a bank belongs to one set of model arguments; leave out model_args"
            )
        if simulations is not None:
            check_bank(simulations, nonfinite)
        if not callable(missing) and not 0 <= missing < 1:
            raise ValueError(f"missing: expected a fraction from 0 to below 1, got {missing}")
        super().__init__(num_particles=1)
        self.num_simulations = num_simulations
        self.model_args = model_args
        self.simulations = simulations
        self.nonfinite = nonfinite
        self.missing = missing

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """One simulation as the host's traces: the model's, and the guide's at its latents."""
        guide.setup(*args, **kwargs)
        kept = keep_fixed(model, guide.structure.constants)
        rows = simulate(kept, 1, args=args, kwargs=kwargs, method="loop").sites
        values = {name: value[0] for name, value in rows.items()}
        alternatives = guide.structure.alternatives or (guide.observed,)
        observations = {name: values[name] for name in alternatives[0]}
        model_trace = poutine.trace(poutine.condition(model, data=values)).get_trace(
            *args, **kwargs
        )
        guide_trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(
            *args, observations=observations, **kwargs
        )
        return model_trace, guide_trace

    def loss(self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss on simulations that training does not see, as the host evaluates it."""
        with torch.no_grad():
            return float(self.held_out_loss(model, guide, *args, **kwargs))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, with the guide's parameters registered for the host.

        Args:
            model: The user's model.
            guide: The guide.
            *args: The model's positional arguments; data among them are not used.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, differentiable.
        """
        loss, _ = self.loss_and_count(model, guide, *args, **kwargs)
        guide.register()
        return loss

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> float:
        """The loss after adding its gradient to that of the guide's parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())

    def loss_and_count(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the number of simulations that were not finite."""
        sites, is_finite = self._training_losses(model, guide, (args, kwargs))
        return _total(sites), (~is_finite).sum()

    def site_losses(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """The terms of the loss by latent site."""
        return self._training_losses(model, guide, (args, kwargs))[0]

    def held_out_loss(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss on simulations that training does not see: fresh, or held out of the bank."""
        rows = None
        if self.simulations is not None:
            rows = draw_rows(len(self.simulations), self.num_simulations, is_held_out=True)
        losses, drawn = self._row_losses(model, guide, (args, kwargs), rows)
        return _total(means(losses, drawn.is_used))

    @torch.no_grad()
    def bank_loss(self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on all simulations that are held out of the bank.

        Args:
            model: The user's model.
            guide: The guide.
            *args: The model's positional arguments; data among them are not used.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, without a graph.

        Raises:
            ValueError: If there is no bank.
        """
        if self.simulations is None:
            raise ValueError("simulations: there is no bank, of which a part would be held out")
        total, num_used = torch.zeros(()), torch.zeros((), dtype=torch.int)
        for rows in held_out_rows(len(self.simulations)).split(self.num_simulations):
            losses, drawn = self._row_losses(model, guide, (args, kwargs), rows)
            total = total + _total(losses)[drawn.is_used].sum()
            num_used = num_used + drawn.is_used.sum()
        return total / num_used

    def draw_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments for one step, from the sampler.

        Raises:
            ValueError: If there is no sampler.
            TypeError: If the sampler returns neither a tuple nor a dict.
        """
        if self.model_args is None:
            raise ValueError("model_args: this objective has no sampler of arguments")
        return drawn_call(self.model_args())

    def with_fixed_arguments(self) -> NPE:
        """This objective without its sampler of arguments, for one step of a training loop."""
        own = copy.copy(self)
        own.model_args = None
        return own

    def on_bank(self, simulations: Simulations) -> NPE:
        """This objective on a fixed bank of simulations.

        Args:
            simulations: The bank.
        """
        check_bank(simulations, self.nonfinite)
        own = copy.copy(self)
        own.model_args, own.simulations = None, simulations
        return own

    def _training_losses(
        self,
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The mean loss of each latent site, and which simulations are finite."""
        losses, drawn = self._row_losses(model, guide, call, None)
        return means(losses, drawn.is_used), drawn.is_finite

    def _row_losses(
        self,
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        rows: Tensor | None,
    ) -> tuple[dict[str, Tensor], Drawn]:
        """Losses of a site at each simulation, and these."""
        drawn = self._draw(model, guide, call, rows)
        args, kwargs = drawn.call
        terms = guide.site_losses(
            args,
            kwargs,
            drawn.latents,
            drawn.observations,
            batch_dims=1,
            conditionals=drawn.moments,
        )
        losses = {name: term.reshape(len(term), -1).mean(1) for name, term in terms.items()}
        return losses, drawn

    def _draw(
        self,
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        rows: Tensor | None,
    ) -> Drawn:
        """Simulations, or the given rows of the bank, or random ones of it for training."""
        check_single(guide, self)
        check_guide(guide)
        args, kwargs = call if self.model_args is None else self.draw_arguments()
        guide.setup(*args, **kwargs)
        structure = guide.structure
        if structure.missing:
            model = JoinedModel(model, [site.name for site in structure.observed])
        model = keep_fixed(model, structure.constants)
        if structure.factors:
            raise ValueError(
                f"factor site '{structure.factors[0].name}': NPE learns from simulations "
                "and cannot see a factor; use Trace_ELBO, or write the factor as an observed site"
            )
        _check_subsamples(guide, args, kwargs)
        conditional = [site.name for site in structure.latents if site.is_conditional]
        if self.simulations is None and guide.vectorization_problem is not None:
            self._fill_bank(model, guide.vectorization_problem, args, kwargs)
        if self.simulations is None:
            values, moments = simulate_rows(
                model,
                self.num_simulations,
                args,
                kwargs,
                conditional,
                nesting=structure.max_plate_nesting,
            )
        else:
            bank = self.simulations
            check_constants(structure.constants, bank)
            chosen = draw_rows(len(bank), self.num_simulations) if rows is None else rows
            values = {name: torch.as_tensor(value)[chosen] for name, value in bank.sites.items()}
            moments = None
        names = [site.name for site in (*structure.latents, *structure.observed)]
        values = {name: values[name] for name in names}
        is_finite = finite_rows(values)
        # One in some ten million half-normal draws is rounded to zero, whose logarithm is infinite.
        coordinates = {
            site.name: pack(structure, site, values[site.name], 1)[0] for site in structure.latents
        }
        is_used = finite_rows(coordinates) | ~is_finite
        if self.nonfinite == "drop":
            is_used = is_used & is_finite
        if not bool(is_used.all()):
            values = {name: _fill_rows(value, is_used) for name, value in values.items()}
            moments = moments and {
                name: (_fill_rows(loc, is_used), _fill_rows(scale, is_used))
                for name, (loc, scale) in moments.items()
            }
        return Drawn(
            (args, kwargs),
            {site.name: values[site.name] for site in structure.latents},
            self._hidden(guide, values, args, kwargs),
            moments,
            is_used,
            is_finite,
        )

    def _fill_bank(
        self,
        model: Callable[..., Any],
        problem: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        warnings.warn(
            f"the model cannot be vectorised, so {_BANK_SIZE:,} simulations are made once, one by "
            f"one, and used again and again: {problem}",
            stacklevel=2,
        )
        bank = simulate(model, _BANK_SIZE, args=args, kwargs=kwargs, method="loop")
        if bank.nonfinite and self.nonfinite == "raise":
            raise ValueError(nonfinite_message(bank))
        self.simulations = bank

    def _hidden(
        self,
        guide: ScoresLatents,
        values: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Simulated data as the guide may see them: with NaN for what is missing."""
        structure = guide.structure
        check_hiding(structure, self.missing)
        data = {site.name: values[site.name] for site in structure.observed}
        data = hide_some(structure, data, self.missing)
        return mark_missing(structure, bound_arguments(guide.model, args, kwargs).arguments, data)


def means(losses: Mapping[str, Tensor], is_used: Tensor) -> dict[str, Tensor]:
    """Means of losses over the rows that count.

    Args:
        losses: One for each row, by site.
        is_used: Which rows count.
    """
    weights = is_used / is_used.sum()
    return {name: (weights * loss).sum() for name, loss in losses.items()}


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum(0)


def check_guide(guide: Any) -> None:
    """Raise a TypeError if a guide lacks what NPE needs."""
    if not hasattr(type(guide), "site_losses"):
        raise TypeError(
            "NPE needs a guide that scores given latents (site_losses); "
            f"{type(guide).__name__} has no such method, AmortizedGuide does"
        )


def _check_subsamples(
    guide: ScoresLatents, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise a ValueError if latents outside a subsampled plate would see some of its rows only."""
    structure = guide.structure
    if not structure.subsampled:
        return
    for plate, (size, num_rows) in subsample_sizes(guide.model, args, kwargs).items():
        outside = [site.name for site in structure.latents if plate not in site.plates]
        if num_rows < size and outside:
            raise ValueError(
                f"plate '{plate}': NPE would simulate {num_rows} of {size} rows, and sites "
                f"{outside} outside the plate depend on all of them. Train on the whole plate, "
                "or use a bound of the host such as Trace_ELBO"
            )
        read = [item.name for item in structure.inputs if plate in item.plates]
        read += [group.name for group in structure.groups if group.along == plate]
        if num_rows < size and read:
            raise ValueError(
                f"plate '{plate}': NPE would simulate other {num_rows} of {size} rows in every "
                f"run, and the arguments {read} go with them. Train on the whole plate, or use a "
                "bound of the host such as Trace_ELBO"
            )


def _fill_rows(value: Tensor, is_used: Tensor) -> Tensor:
    """Replace rows that are left out by the first that is not, before any network."""
    first = int(is_used.int().argmax())
    keep = is_used.reshape((-1,) + (1,) * (value.ndim - 1))
    return torch.where(keep, value, value[first])
