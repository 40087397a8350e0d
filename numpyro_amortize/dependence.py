"""Which arrays the result of a function depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


def is_read(function: Callable[[Any], Array], tree: Any) -> Any:
    """Whether the result of a function depends on each array of its argument.

    The steps of a loop or of a compiled function inside of it count as one: what enters there is
    taken to reach all that leaves it.

    Args:
        function: The function.
        tree: Its argument, a tree of arrays.

    Returns:
        A tree of booleans.

    Example:
        >>> import jax.numpy as jnp
        >>> is_read(lambda tree: 2.0 * tree["a"], {"a": jnp.ones(()), "b": jnp.ones(3)})
        {'a': True, 'b': False}
    """
    steps = jax.make_jaxpr(function)(tree).jaxpr
    needed = {id(variable) for variable in steps.outvars}
    for step in reversed(steps.eqns):
        if any(id(variable) in needed for variable in step.outvars):
            needed |= {id(variable) for variable in step.invars}
    read = [id(variable) in needed for variable in steps.invars]
    return jax.tree.unflatten(jax.tree.structure(tree), read)
