"""A fixed bank of simulations: the rows that are trained on, and every tenth, which is held out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.simulate import Simulations

_EVERY = 10  # rows of several rounds after another are held out in equal parts


def held_out_rows(num_simulations: int) -> Array:
    """The rows of a bank that training never sees: every tenth.

    Args:
        num_simulations: Number of rows of the bank.
    """
    return jnp.arange(_EVERY - 1, num_simulations, _EVERY)


def draw_rows(
    num_simulations: int, num_rows: int, rng_key: Array, *, is_held_out: Array | bool = False
) -> Array:
    """Random rows of a bank, from those for training or from those held out.

    Args:
        num_simulations: Number of rows of the bank.
        num_rows: Number of rows to draw, with replacement.
        rng_key: Key of the draw.
        is_held_out: Which part of the bank; a value in compiled code, too.
    """
    held_out = held_out_rows(num_simulations)
    drawn = jax.random.randint(rng_key, (num_rows,), 0, num_simulations - len(held_out))
    return jnp.where(is_held_out, held_out[drawn % len(held_out)], drawn + drawn // (_EVERY - 1))


def check_constants(constants: Sequence[str], bank: Simulations) -> None:
    """Raise a ValueError if sites that the guide takes for constants are drawn in a bank."""
    for name in constants:
        values = np.asarray(bank[name])
        if (values != values[:1]).any():
            raise ValueError(
                f"simulations: site '{name}' is a constant of the guide's model but is drawn in "
                "this bank. Make it after guide.setup(...), with simulate(guide.model, ...)"
            )


def check_bank(simulations: Simulations, nonfinite: str) -> None:
    """Raise a ValueError if a bank of simulations has too few that are finite."""
    if len(simulations) < 20:
        raise ValueError(
            f"simulations: expected at least 20 to hold some out, got {len(simulations)}"
        )
    if simulations.nonfinite and nonfinite == "raise":
        raise ValueError(nonfinite_message(simulations))


def nonfinite_message(simulations: Simulations) -> str:
    """An error text that counts the runs that are not finite, by site."""
    counts = ", ".join(f"'{name}': {count}" for name, count in simulations.nonfinite.items())
    return (
        f"simulations are not finite in runs (of {len(simulations)}) at sites {{{counts}}}. Mend "
        "the model or its priors; or pass NPE(nonfinite='drop') to leave such runs out, which "
        "is right if real data are always finite"
    )
