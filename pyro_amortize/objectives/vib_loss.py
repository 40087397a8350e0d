"""The variational information bottleneck: a bound whose guide must not see the labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor

from pyro_amortize.objectives.elbo_terms import (
    ElboTerms,
    ParticleSites,
    TermwiseELBO,
    check_number,
    samples,
)
from pyro_amortize.tracing import seeded


class VIBLoss(TermwiseELBO):
    """The variational information bottleneck, a loss for the host's `SVI` (and `fit`).

    `L = -E_e log d(y | z) + beta * KL(e(z | x) || m(z))` in nats, summed over rows, with the model
    `z ~ m, y ~ d(y | z)` in the plate of the data and the guide `e`, which reads the input x. The
    divergence is an upper bound of the information of z about x, counted once for each x however
    many labels it has. With beta = 1 and inputs held fixed it is the negative ELBO of labels given
    inputs, which holds for unseen labels too because the guide does not see them.
    Use it for a classifier or regression with a stochastic bottleneck: better calibrated than a
    plain network, and the divergence of a row says how unusual it is. Predict by the mean of
    `d(y | z)` over 12 or more draws of the guide, and choose beta between 1e-4 and 1 on held-out
    rows. Avoid it against too few distinct inputs, from which it does not protect, and for the
    posterior of z given all data: that is `WeightedELBO`, with a guide that reads them. An
    `AmortizedGuide` reads what it calls observed, and is refused for the labels of the model.

    Args:
        beta: Nats of likelihood that a nat about the input may cost, from 0 on; 0 is a plain
            network, whose noise goes to nothing.
        num_particles: Draws of the guide for each row.

    Raises:
        ValueError: If an argument is out of range; in use, if the guide reads what the labels are
            made of, if these are in no argument, so that it could not be seen, if a label is
            outside of its distribution's support (at the first call), if a latent is in no
            plate of the labels, if the guide misses one or draws one without a gradient.

    Example:
        >>> VIBLoss(0.1).beta
        0.1

    References:
        Alemi, Fischer, Dillon and Murphy (2017), Deep variational information bottleneck,
        arXiv:1612.00410, equation 17; Alemi, Morningstar, Poole, Fischer and Dillon (2021), VIB is
        half Bayes.
    """

    def __init__(self, beta: float, *, num_particles: int = 1) -> None:
        check_number("beta", beta, lower=0.0)
        super().__init__(num_particles)
        self.beta = beta

    def _check_pair(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Raise an error if the guide reads labels."""
        with poutine.block(), torch.no_grad(), seeded(0):
            guide(*args, **kwargs)  # parameters are not to be made of tracked arguments
            _check_labels(model, guide, args, kwargs)

    def _combine(self, terms: ElboTerms, sites: ParticleSites) -> Tensor:
        _check_plates(sites)
        divergence = sum(terms.divergences.values(), torch.zeros(()))
        return self.beta * divergence - terms.likelihood


def _check_plates(sites: ParticleSites) -> None:
    """Raise a ValueError if a latent site is in no plate of the labels."""
    plates = {plate for name in sites.data() for plate in sites.plates(name)}
    for name in sites.latents:
        if not plates & set(sites.plates(name)):
            raise ValueError(
                f"site '{name}': is in none of the plates {sorted(plates)} of the labels, and "
                "VIBLoss needs a latent for each row. Write it inside the plate, or use "
                "WeightedELBO"
            )


def _check_labels(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Raise a ValueError if the guide reads labels, or labels are outside of their support."""
    args = tuple(_tracked(value, f"argument {index}") for index, value in enumerate(args))
    kwargs = {name: _tracked(value, f"argument '{name}'") for name, value in kwargs.items()}
    guide_trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    trace: Any = poutine.trace(replayed).get_trace(*args, **kwargs)
    sites = ParticleSites(dict(trace.nodes), dict(guide_trace.nodes), 1, "VIBLoss")
    for name in sites.data():
        site = sites.model[name]
        if not bool(site["fn"].support.check(detach_provenance(site["value"])).all()):
            raise _label_error(name, site["fn"].support)
    _check_reads(
        {name: get_provenance(site["value"]) for name, site in samples(sites.guide)},
        {name: get_provenance(sites.model[name]["value"]) for name in sites.data()},
        getattr(guide, "observed", ()),
    )


def _tracked(value: Any, name: str) -> Any:
    """An argument whose arrays say in which part of it they are."""
    if isinstance(value, dict):
        return {key: _tracked(part, f"{name}[{key!r}]") for key, part in value.items()}
    if type(value) in (list, tuple):
        parts = (_tracked(part, f"{name}[{index}]") for index, part in enumerate(value))
        return type(value)(parts)
    return track_provenance(value, frozenset({name})) if isinstance(value, Tensor) else value


def _check_reads(
    latents: Mapping[str, frozenset[str]],
    labels: Mapping[str, frozenset[str]],
    observed: Collection[str],
) -> None:
    """Raise a ValueError if a latent site of the guide depends on what the labels are made of.

    Args:
        latents: The arguments that each latent site of the guide depends on.
        labels: The arguments that each observed site of the model is made of.
        observed: Sites that the guide reads; their data may be bound to it.
    """
    for name, own in labels.items():
        if name in observed:
            raise ValueError(
                f"site '{name}': the guide reads the labels at it. Write a guide that reads the "
                "inputs alone, or use WeightedELBO for the posterior given the labels"
            )
        if not own:
            raise ValueError(
                f"site '{name}': its labels are in no argument of the model, so that it cannot be "
                "seen whether the guide reads them. Pass them as an argument"
            )
    for name, own in latents.items():
        for site, arguments in labels.items():
            if own & arguments:
                raise ValueError(
                    f"site '{name}': the guide reads {sorted(own & arguments)}, of which the "
                    f"labels at site '{site}' are made. Give it the inputs alone, in arguments of "
                    "their own, or use WeightedELBO for the posterior given the labels"
                )


def _label_error(name: str, support: Any) -> ValueError:
    return ValueError(
        f"site '{name}': has labels outside of its support {support}. Number classes from 0, and "
        "look at the distribution of the labels"
    )
