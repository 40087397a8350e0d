"""The weights of a guide as parameters of the host, by name, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from numpyro_amortize.guides.chain import PosteriorChain
from numpyro_amortize.standardisation import STANDARDISATION, Standardisation
from numpyro_amortize.structure import ModelStructure

PARAMS = "amortized$params"


class NamedWeights:
    """The arrays of a chain under the names that the other package's state dict has.

    Args:
        chain: The chain with its initial weights.
        structure: The structure of the model.
    """

    def __init__(self, chain: PosteriorChain, structure: ModelStructure) -> None:
        arrays, self._static = eqx.partition(chain, eqx.is_array)
        paths, self._treedef = jax.tree_util.tree_flatten_with_path(arrays)
        self._structure = structure
        self._initial = {_dotted(path): leaf for path, leaf in paths}

    def initial(self, standardisation: Standardisation) -> dict[str, Any]:
        """The host's parameters before training.

        Args:
            standardisation: The constants.
        """
        # Read relative to its first entry: decoupled weight decay of a stock optimiser
        # scales all entries alike and cancels.
        vector: Array = jnp.concatenate([jnp.ones(1), jnp.asarray(standardisation.vector())])
        return {PARAMS: dict(self._initial), STANDARDISATION: vector}

    def unpack(self, params: Mapping[str, Any]) -> tuple[PosteriorChain, Standardisation]:
        """The chain and the constants at given parameters of the host."""
        leaves = [params[PARAMS][name] for name in self._initial]
        arrays = jax.tree_util.tree_unflatten(self._treedef, leaves)
        constants = Standardisation.from_params(self._structure, params)
        return eqx.combine(arrays, self._static), constants


def join_params(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Parameters of several guides as those of an ensemble, by number under the same names.

    Args:
        members: Parameters of each guide, those of the model among them.

    Raises:
        ValueError: If a parameter of the model differs between members.
    """
    joined: dict[str, Any] = {}
    for params in members:
        for name, value in params.items():
            if name in (PARAMS, STANDARDISATION):
                continue
            if not eqx.tree_equal(joined.setdefault(name, value), value):
                raise ValueError(
                    f"members: parameter '{name}' of the model differs between them; expected "
                    "posteriors of one model, trained by NPE() after its parameters"
                )
    for name in (PARAMS, STANDARDISATION):
        joined[name] = {str(number): params[name] for number, params in enumerate(members)}
    return joined


def member_params(params: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The parameters of one member of an ensemble, those of the model among them.

    Args:
        params: Parameters of the ensemble.
        number: Number of the member.
    """
    own = {name: params[name][str(number)] for name in (PARAMS, STANDARDISATION)}
    return {**params, **own}


def model_at(model: Callable[..., Any], params: Mapping[str, Any]) -> Callable[..., Any]:
    """The model with its own parameters at given values.

    Args:
        model: The user's model.
        params: Parameters by name, those of the guide among them.

    Returns:
        The model itself if it has none.
    """
    own = {name: params[name] for name in params if name not in (PARAMS, STANDARDISATION)}
    return handlers.substitute(model, data=own) if own else model


def _dotted(path: Sequence[Any]) -> str:
    names = (getattr(key, "name", getattr(key, "idx", getattr(key, "key", key))) for key in path)
    return ".".join(map(str, names))
