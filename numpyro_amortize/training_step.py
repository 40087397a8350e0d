"""One compiled optimiser step, many at a time, and what went wrong when one is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.elbo import ELBO

from numpyro_amortize.clipping import global_norm, gradient_clipping
from numpyro_amortize.dependence import is_read
from numpyro_amortize.guides import AmortizedGuide
from numpyro_amortize.guides.weights import PARAMS, STANDARDISATION
from numpyro_amortize.handlers import fill_missing
from numpyro_amortize.handlers.padding import mask_padding
from numpyro_amortize.measure import Call
from numpyro_amortize.objectives import NPE, VIS
from numpyro_amortize.objectives.mixed import parts_of
from numpyro_amortize.objectives.over_data_sets import OverDataSets
from numpyro_amortize.padding import PaddedCall
from numpyro_amortize.tracing import log_densities, run_model

_FEWEST_KEYS = 8  # for which room is compiled

State = tuple[Any, Any]  # what is trained, and the optimiser's


class _Part(NamedTuple):
    """One objective of a sum at one call: its weight, what it compares, the key of its draws."""

    objective: ELBO
    weight: float
    model: Callable[..., Any]
    guide: Callable[..., Any]
    key: Array


class StepResults(NamedTuple):
    """What each step found: its loss, the norm of its gradient, the simulations left out."""

    losses: np.ndarray
    gradient_norms: np.ndarray
    num_nonfinite: np.ndarray

    @property
    def first_bad(self) -> int | None:
        """The first step whose loss or gradient is not finite."""
        is_bad = ~(np.isfinite(self.losses) & np.isfinite(self.gradient_norms))
        return int(np.argmax(is_bad)) if is_bad.any() else None


class TrainingStep:
    """The optimiser step of one guide, model and objective.

    Compiling is what takes long, so that one program does all: any number of steps, the loss on
    held-out simulations, which is that of steps without an update. For the default optimiser all
    parameters are one vector; one that is given may treat them by their names.

    Args:
        model: The model.
        guide: The guide, set up.
        objective: The objective.
        call: Arguments of the model.
        optimizer: An optax optimiser, or None for Adam with a cosine-decayed rate.
        learning_rate: Initial rate of the default optimiser.
        num_steps: Number of steps of the decay.
        params: Parameters to start from, or None.
        trains_model: Whether parameters of the model may be trained.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AmortizedGuide,
        objective: ELBO,
        call: Call,
        *,
        optimizer: optax.GradientTransformation | None,
        learning_rate: float,
        num_steps: int,
        params: Mapping[str, Any] | None,
        trains_model: bool = True,
    ) -> None:
        self.guide, structure = guide, guide.structure
        # Simulations have no data to be missing, and many data sets have them in turn.
        is_filled = structure.incomplete and not isinstance(objective, OverDataSets)
        filled = fill_missing(model, optional=structure.optional) if is_filled else model
        self._parts = [
            (part, weight, model if isinstance(part, NPE) else filled)
            for part, weight in parts_of(objective)
        ]
        is_npe = all(isinstance(part, NPE) for part, _, _ in self._parts)
        is_model_fixed = is_npe or not trains_model
        clipping = gradient_clipping([part for part, _, _ in self._parts])
        default = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
        self.optimizer = optax.chain(clipping, default if optimizer is None else optimizer)
        self._transforms: dict[str, Any] = {}
        start = guide.init_params()
        for name, (value, constraint) in _model_params(model if is_npe else filled, call).items():
            self._transforms[name] = biject_to(constraint)
            start[name] = value
        start |= dict(params or {})
        # Neither the standardisation nor, under NPE alone, parameters of the model are trained.
        frozen = {STANDARDISATION} | (set(self._transforms) if is_model_fixed else set())
        self._constants = {name: start[name] for name in frozen}
        free = {
            name: self._transforms[name].inv(value) if name in self._transforms else value
            for name, value in start.items()
            if name not in frozen
        }
        # Nor are the networks of pooled levels that no latent site reads.
        self._unread: dict[str, Array] = {}
        self._by_name: Callable[[Any], dict[str, Any]] = dict
        self._unread = self._find_unread(free, call)
        free[PARAMS] = {
            name: value for name, value in free[PARAMS].items() if name not in self._unread
        }
        trained: Any = free
        if optimizer is None:
            trained, self._by_name = ravel_pytree(free)
        self.initial: State = (trained, self.optimizer.init(trained))
        self._num_keys = _FEWEST_KEYS
        self._compiled = eqx.filter_jit(self._loop)
        self._of_bank = eqx.filter_jit(self._mean_of_bank)

    def params(self, state: State) -> dict[str, Any]:
        """Constrained parameters under the host's names."""
        return self._constrain(state[0])

    def advance(self, state: State, keys: Array, padded: PaddedCall) -> tuple[State, StepResults]:
        """As many steps as there are keys; where one is not finite, those after it mean nothing."""
        return self._run(state, keys, padded, is_training=True)

    def held_out_loss(self, state: State, keys: Array, padded: PaddedCall) -> float:
        """Mean loss over fixed keys, on simulations that training does not see."""
        return float(self._run(state, keys, padded, is_training=False)[1].losses.mean())

    def _run(
        self, state: State, keys: Array, padded: PaddedCall, *, is_training: bool
    ) -> tuple[State, StepResults]:
        """Steps in a loop with room for as many as were ever asked for."""
        num_steps = len(keys)
        self._num_keys = max(self._num_keys, num_steps)
        keys = keys[np.minimum(np.arange(self._num_keys), num_steps - 1)]
        flag = jnp.asarray(is_training)
        state, found = self._compiled(
            state, keys, jnp.asarray(num_steps), flag, padded.call, padded.true_sizes
        )
        return state, StepResults(*(np.asarray(each)[:num_steps] for each in found))

    def bank_loss(self, state: State, key: Array, padded: PaddedCall) -> float:
        """The loss of NPE on all simulations held out of its bank."""
        return float(self._of_bank(state, key, padded.call, padded.true_sizes))

    def warn(self, state: State, key: Array, padded: PaddedCall) -> None:
        """Say what a user of the trained guide should know."""
        args, kwargs = padded.call
        for part in self._at_sizes(key, padded.true_sizes):
            if isinstance(part.objective, VIS):
                given = part.key, self.params(state), part.model, part.guide
                part.objective.warn_of_tails(*given, *args, **kwargs)

    def explain(
        self, state: State, keys: Array, padded: PaddedCall, first_step: int, results: StepResults
    ) -> str:
        """Repeat the steps up to the first bad one, and that site by site; name it and them."""
        bad_step = results.first_bad or 0
        if bad_step:
            state, _ = self.advance(state, keys[:bad_step], padded)
        bad_losses: dict[str, None] = {}
        bad_gradients: dict[str, None] = {}
        for part in self._at_sizes(keys[bad_step], padded.true_sizes):
            terms_of = partial(self._site_terms, part=part, call=padded.call)
            terms = terms_of(state[0])
            for name, term in terms.items():
                if not np.isfinite(term):
                    bad_losses[name] = None
            if bad_losses:
                continue
            for name in terms:  # one at a time: in a Jacobian, NaN spreads to other sites
                gradient = jax.grad(lambda free, name=name, of=terms_of: of(free)[name])(state[0])
                if not all(np.isfinite(each).all() for each in jax.tree.leaves(gradient)):
                    bad_gradients[name] = None
        return not_finite_message(first_step + bad_step + 1, list(bad_losses), list(bad_gradients))

    def _site_terms(self, free: Any, part: _Part, call: Call) -> dict[str, Array]:
        """The terms of one objective's loss by site."""
        args, kwargs = call
        given = part.key, self._constrain(free), part.model, part.guide
        if isinstance(part.objective, NPE):
            terms = part.objective.site_losses(*given, *args, **kwargs)
        else:
            terms = _site_densities(*given, call)
        return {name: jnp.sum(term) for name, term in terms.items()}

    def _at_sizes(
        self, key: Array, true_sizes: Mapping[str, Array], *, is_held_out: Array | bool = False
    ) -> list[_Part]:
        """The parts for a call that is padded from these sizes of plates."""
        keys = [key] if len(self._parts) == 1 else list(jax.random.split(key, len(self._parts)))
        found = []
        for own_key, (objective, weight, model) in zip(keys, self._parts, strict=True):
            guide: Callable[..., Any] = self.guide
            if isinstance(objective, NPE):
                objective = objective.for_call(true_sizes, is_held_out=is_held_out)
            elif true_sizes:
                model = mask_padding(model, true_sizes)
                guide = mask_padding(self.guide.padded(true_sizes), true_sizes)
            found.append(_Part(objective, weight, model, guide, own_key))
        return found

    def _constrain(self, free: Any) -> dict[str, Any]:
        trained = {
            name: self._transforms[name](value) if name in self._transforms else value
            for name, value in self._by_name(free).items()
        }
        trained[PARAMS] = {**trained[PARAMS], **self._unread}
        return trained | self._constants

    def _find_unread(self, free: dict[str, Any], call: Call) -> dict[str, Array]:
        """The weights of the guide on which the loss does not depend."""

        def loss(weights: dict[str, Array]) -> Array:
            return self._loss({**free, PARAMS: weights}, jax.random.key(0), call, {})[0]

        found = is_read(loss, free[PARAMS])
        return {name: value for name, value in free[PARAMS].items() if not found[name]}

    def _loss(
        self,
        free: Any,
        key: Array,
        call: Call,
        true_sizes: Mapping[str, Array],
        *,
        is_held_out: Array | bool = False,
    ) -> tuple[Array, Array]:
        args, kwargs = call
        params = self._constrain(free)
        total, count = jnp.zeros(()), jnp.zeros((), int)
        for part in self._at_sizes(key, true_sizes, is_held_out=is_held_out):
            given = part.key, params, part.model, part.guide
            if isinstance(part.objective, NPE):
                loss, count = part.objective.loss_and_count(*given, *args, **kwargs)
            else:
                loss = part.objective.loss(*given, *args, **kwargs)
            total = total + part.weight * loss
        return total, count

    def _loop(
        self,
        state: State,
        keys: Array,
        num_steps: Array,
        is_training: Array,
        call: Call,
        true_sizes: Mapping[str, Array],
    ) -> tuple[State, tuple[Array, Array, Array]]:
        def loss(free: Any, key: Array) -> tuple[Array, Array]:
            return self._loss(free, key, call, true_sizes, is_held_out=~is_training)

        def one(step: Array, carry: Any) -> Any:
            (free, optimizer_state), found = carry
            (value, count), gradient = jax.value_and_grad(loss, has_aux=True)(free, keys[step])
            updates, optimizer_state = self.optimizer.update(gradient, optimizer_state, free)
            updates = jax.tree.map(lambda each: jnp.where(is_training, each, 0), updates)
            state = optax.apply_updates(free, updates), optimizer_state
            values = value, global_norm(gradient), count
            return state, [
                into.at[step].set(each) for into, each in zip(found, values, strict=True)
            ]

        kinds = [each.dtype for each in jax.eval_shape(loss, state[0], keys[0])]
        empty = [jnp.zeros(len(keys), kind) for kind in (kinds[0], kinds[0], kinds[1])]
        state, found = jax.lax.fori_loop(0, num_steps, one, (state, empty))
        return state, tuple(found)

    def _mean_of_bank(
        self, state: State, key: Array, call: Call, true_sizes: Mapping[str, Array]
    ) -> Array:
        args, kwargs = call
        (part,) = self._at_sizes(key, true_sizes)
        given = part.key, self._constrain(state[0]), part.model, part.guide
        return part.objective.bank_loss(*given, *args, **kwargs)


def _model_params(
    model: Callable[..., Any], call: Call
) -> dict[str, tuple[Any, constraints.Constraint]]:
    """Value and constraint of the model's `param` sites."""
    trace = run_model(model, *call, jax.random.key(0))
    return {
        name: (site["value"], site["kwargs"].get("constraint", constraints.real))
        for name, site in trace.items()
        if site["type"] == "param"
    }


def not_finite_message(step: int, bad_losses: list[str], bad_gradients: list[str]) -> str:
    """Names the step and the sites where the loss or, if none, where its gradient is not finite."""
    if bad_losses:
        return (
            f"step {step}: the loss is not finite, at sites {bad_losses}. Look for draws or data "
            "at the edge of a support and for simulations that overflow; a lower learning_rate "
            "helps if the networks diverge"
        )
    where = f", at sites {bad_gradients}" if bad_gradients else ""
    return (
        f"step {step}: the gradient of the loss is not finite{where}. Look for roots, norms and "
        "quotients at zero and for values that a `where` leaves out; a lower learning_rate helps "
        "if the networks diverge"
    )


def _site_densities(
    key: Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
) -> dict[str, Array]:
    """Log densities of one guide draw by site, for the error message."""
    args, kwargs = call
    with handlers.block():
        seeded = handlers.substitute(handlers.seed(guide, key), data=dict(params))
        guide_trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        replayed = handlers.replay(handlers.seed(model, key), guide_trace)
        model_trace = handlers.trace(handlers.substitute(replayed, data=dict(params))).get_trace(
            *args, **kwargs
        )
    found = log_densities(guide_trace)
    for name, density in log_densities(model_trace).items():
        found[name] = jnp.sum(density) + jnp.sum(found.get(name, 0.0))
    return found
