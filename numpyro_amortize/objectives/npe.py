"""Neural posterior estimation: the forward divergence on the model's own simulations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from numpyro_amortize.arguments import bound_arguments, drawn_call
from numpyro_amortize.layout import pack
from numpyro_amortize.missing import check_hiding, hide_some, mark_missing
from numpyro_amortize.objectives.bank import check_bank, check_constants, draw_rows, held_out_rows
from numpyro_amortize.objectives.gradients import check_single
from numpyro_amortize.obs_mask import JoinedModel
from numpyro_amortize.pooling import existing
from numpyro_amortize.simulate import Simulations, finite_rows, simulate_rows
from numpyro_amortize.standardisation import Moments
from numpyro_amortize.structure import ModelStructure
from numpyro_amortize.tracing import keep_fixed, subsample_sizes

_LOSSES = 2**31 - 1  # beyond the number of any simulation, whose keys are split from the same


class ScoresLatents(Protocol):
    """What NPE needs of a guide: its structure, and what training at given values makes small."""

    @property
    def model(self) -> Callable[..., Any]:
        """The model of the guide."""

    @property
    def structure(self) -> ModelStructure:
        """What the guide has read of the model."""

    def setup(self, *args: Any, **kwargs: Any) -> Any:
        """Read the model once."""

    def site_losses(
        self,
        params: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Array],
        observations: Mapping[str, Array],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
        true_sizes: Mapping[str, Any] | None = None,
        rng_key: Array,
    ) -> dict[str, Array]:
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
        key: For what else is random in the step.
    """

    call: tuple[tuple[Any, ...], dict[str, Any]]
    latents: dict[str, Array]
    observations: dict[str, Array]
    moments: Any
    is_used: Array
    is_finite: Array
    key: Array


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
        model_args: Draws the model's arguments for each step, `model_args(rng_key)`: a tuple of
            positional or a dict of keyword arguments. It must derive everything from the key.
        simulations: A fixed bank of simulations, used in place of fresh ones; every tenth
            row is held out.
        nonfinite: `"raise"` stops when a simulation is not finite; `"drop"` leaves it out of
            the loss and counts it, which keeps the posterior of finite data right. Draws that
            rounding puts on the boundary of a support are always left out.
        missing: For guides made with `missing=`: the largest fraction of values that is hidden
            from the guide, drawn anew between zero and it for each simulation; or a function
            `missing(rng_key, site, shape)` that returns True where values are hidden.

    Raises:
        ValueError: If `num_simulations` is below 1, both sources are given, or the bank has
            too few finite simulations.

    Example:
        >>> NPE(num_simulations=256).num_simulations
        256

    References:
        Papamakarios and Murray (2016), arXiv:1605.06376, proposition 1.
    """

    can_infer_discrete = True  # the host's flag: nothing is drawn from the guide

    def __init__(
        self,
        num_simulations: int = 128,
        *,
        model_args: Callable[[Array], tuple[Any, ...] | dict[str, Any]] | None = None,
        simulations: Simulations | None = None,
        nonfinite: Literal["raise", "drop"] = "raise",
        missing: float | Callable[[Array, str, tuple[int, ...]], Array] = 0.0,
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
        self._true_sizes: Mapping[str, Any] = {}
        self._is_held_out: Array | bool = False

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in the host's signature.

        Args:
            rng_key: Key of the simulations.
            param_map: Parameters by name, constrained.
            model: The user's model.
            guide: The guide.
            *args: The model's positional arguments; data among them are not used.
            **kwargs: The model's keyword arguments.

        Returns:
            `{"loss": loss, "mutable_state": None}`.
        """
        loss, _ = self.loss_and_count(rng_key, param_map, model, guide, *args, **kwargs)
        return {"loss": loss, "mutable_state": None}

    def loss_and_count(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Array, Array]:
        """The loss, and the number of simulations that were not finite."""
        call = args, kwargs
        sites, is_finite = self._training_losses(rng_key, param_map, model, guide, call)
        return _total(sites), jnp.sum(~is_finite)

    def site_losses(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """The terms of the loss by latent site."""
        call = args, kwargs
        return self._training_losses(rng_key, param_map, model, guide, call)[0]

    def bank_loss(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Array:
        """The loss on all simulations that are held out of the bank.

        Args:
            rng_key: Key of the values that `missing` hides, and of losses that are random.
            param_map: Parameters by name, constrained.
            model: The user's model.
            guide: The guide.
            *args: The model's positional arguments; data among them are not used.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss.

        Raises:
            ValueError: If there is no bank.
        """
        if self.simulations is None:
            raise ValueError("simulations: there is no bank, of which a part would be held out")
        call, held_out = (args, kwargs), held_out_rows(len(self.simulations))
        num_held_out, num_rows = len(held_out), self.num_simulations
        num_batches = -(-num_held_out // num_rows)
        numbers = jnp.arange(num_batches * num_rows).reshape(num_batches, num_rows)

        def one(batch: tuple[Array, Array]) -> tuple[Array, Array]:
            numbers, key = batch
            rows = held_out[jnp.minimum(numbers, num_held_out - 1)]
            losses, drawn = self._row_losses(key, param_map, model, guide, call, rows)
            is_used = drawn.is_used & (numbers < num_held_out)
            return jnp.sum(_total(losses), where=is_used), jnp.sum(is_used)

        totals, nums_used = jax.lax.map(one, (numbers, jax.random.split(rng_key, num_batches)))
        return jnp.sum(totals) / jnp.sum(nums_used)

    def draw_arguments(self, rng_key: Array) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments for one step, from the sampler.

        Raises:
            ValueError: If there is no sampler.
            TypeError: If the sampler returns neither a tuple nor a dict.
        """
        if self.model_args is None:
            raise ValueError("model_args: this objective has no sampler of arguments")
        return drawn_call(self.model_args(rng_key))

    def for_call(self, true_sizes: Mapping[str, Any], *, is_held_out: Array | bool = False) -> NPE:
        """This objective for one call of a training loop, without the sampler of arguments.

        Args:
            true_sizes: For each plate that the call pads the number of its elements that exist.
            is_held_out: Whether it is on simulations of the bank that training does not see.
        """
        own = copy.copy(self)
        own.model_args = None
        own._true_sizes = true_sizes
        own._is_held_out = is_held_out
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
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> tuple[dict[str, Array], Array]:
        """The mean loss of each latent site, and which simulations are finite."""
        losses, drawn = self._row_losses(rng_key, param_map, model, guide, call, None)
        return means(losses, drawn.is_used), drawn.is_finite

    def _row_losses(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        rows: Array | None,
    ) -> tuple[dict[str, Array], Drawn]:
        """Losses of a site at each simulation, and these."""
        drawn = self._draw(rng_key, param_map, model, guide, call, rows)
        args, kwargs = drawn.call
        terms = guide.site_losses(
            param_map,
            args,
            kwargs,
            drawn.latents,
            drawn.observations,
            batch_dims=1,
            conditionals=drawn.moments,
            true_sizes=self._true_sizes,
            rng_key=jax.random.fold_in(drawn.key, _LOSSES),
        )
        structure = guide.structure
        losses = {
            name: self._mean_over_elements(structure, name, term) for name, term in terms.items()
        }
        return losses, drawn

    def _draw(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: ScoresLatents,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        rows: Array | None,
    ) -> Drawn:
        """Simulations, or the given rows of the bank, or random ones of it for training."""
        check_single(guide, self)
        check_guide(guide)
        argument_key, rng_key, missing_key = jax.random.split(rng_key, 3)
        args, kwargs = call if self.model_args is None else self.draw_arguments(argument_key)
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
        if self.simulations is None:
            values, moments = simulate_rows(
                handlers.substitute(model, data=dict(param_map)),
                self.num_simulations,
                args,
                kwargs,
                rng_key,
                conditional,
            )
        else:
            bank = self.simulations
            check_constants(structure.constants, bank)
            if rows is None:
                num_rows, held_out = self.num_simulations, self._is_held_out
                rows = draw_rows(len(bank), num_rows, rng_key, is_held_out=held_out)
            values = {name: jnp.asarray(value)[rows] for name, value in bank.sites.items()}
            moments = None
        names = [site.name for site in (*structure.latents, *structure.observed)]
        # Simulations are data: no gradient reaches parameters of the model through them.
        values, moments = jax.lax.stop_gradient(({name: values[name] for name in names}, moments))
        is_finite = finite_rows(values)
        # One in some ten million half-normal draws is rounded to zero, whose logarithm is infinite.
        coordinates = {
            site.name: pack(structure, site, values[site.name], 1)[0] for site in structure.latents
        }
        is_used = finite_rows(coordinates) | ~is_finite
        if self.nonfinite == "drop":
            is_used &= is_finite
        values, moments = _fill_rows((values, moments), is_used)
        return Drawn(
            (args, kwargs),
            {site.name: values[site.name] for site in structure.latents},
            self._hidden(missing_key, guide, values, args, kwargs),
            moments,
            is_used,
            is_finite,
            rng_key,
        )

    def _mean_over_elements(self, structure: ModelStructure, name: str, part: Array) -> Array:
        """The mean of losses over the plate elements that exist, one per simulation."""
        plates = structure.site(name).plates
        present = existing(plates, structure.plate_dims, part[..., None], self._true_sizes)
        if present is None:
            return jnp.mean(part.reshape(len(part), -1), axis=1)
        present = jnp.broadcast_to(present[..., 0], part.shape)
        axes = tuple(range(1, part.ndim))
        return jnp.sum(part, axis=axes, where=present) / jnp.sum(present, axis=axes)

    def _hidden(
        self,
        rng_key: Array,
        guide: ScoresLatents,
        values: Mapping[str, Array],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> dict[str, Array]:
        """Simulated data as the guide may see them: with NaN for what is missing."""
        structure = guide.structure
        check_hiding(structure, self.missing)
        data = {site.name: values[site.name] for site in structure.observed}
        data = hide_some(structure, data, self.missing, rng_key)
        return mark_missing(structure, bound_arguments(guide.model, args, kwargs).arguments, data)


def means(losses: Mapping[str, Array], is_used: Array) -> dict[str, Array]:
    """Means of losses over the rows that count.

    Args:
        losses: One for each row, by site.
        is_used: Which rows count.
    """
    weights = is_used / jnp.sum(is_used)
    return {name: jnp.sum(weights * loss) for name, loss in losses.items()}


def _total(losses: Mapping[str, Array]) -> Array:
    return jnp.sum(jnp.stack(list(losses.values())), axis=0)


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


def _fill_rows(tree: Any, is_used: Array) -> Any:
    """Replace rows that are left out, if any are, by the first that is not, before any network."""

    def fill(value: Array) -> Array:
        keep = is_used.reshape((-1,) + (1,) * (value.ndim - 1))
        return jnp.where(keep, value, value[jnp.argmax(is_used)])

    # XLA also computes what enters a `cond` once, and not in every loop that reads it.
    return jax.lax.cond(
        jnp.all(is_used), lambda tree: tree, lambda tree: jax.tree.map(fill, tree), tree
    )
