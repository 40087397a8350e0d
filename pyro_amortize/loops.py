"""Models of time: steps of a Python loop, and what to write in place of too many of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_MOST_STEPS = 64  # each has a head of its own and reads the steps before it
_ADVICE = (
    "Write the series as one event: the increments of a latent path as one vector with "
    ".to_event(1) and the path as their cumulative sum, the observed steps as one vector too, with "
    "embedding={'site': SequenceEmbedding()}"
)


def unrolled_problems(names: Iterable[str]) -> list[str]:
    """Loops that make more sites than a guide should have heads for.

    Sites of one loop have names that differ by a number only.

    Args:
        names: Names of all sample sites.
    """
    loops = defaultdict(list)
    for name in names:
        loops[re.sub(r"\d+", "#", name)].append(name)
    return [
        f"sites '{steps[0]}' to '{steps[-1]}': expected at most {_MOST_STEPS} sites of one loop, "
        f"got {len(steps)}. {_ADVICE}"
        for steps in loops.values()
        if len(steps) > _MOST_STEPS
    ]
