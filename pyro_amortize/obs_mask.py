"""Sites with an `obs_mask`: several sites of the host, one of the guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_amortize.arguments import underlying
from pyro_amortize.structure import MissingInfo, ModelStructure
from pyro_amortize.tracing import Trace, is_masked, keep_fixed, run_model, seeded


class JoinedModel:
    """A model whose sites with an `obs_mask` are one site each.

    Of `sample("y", ..., obs=y, obs_mask=mask)` the host makes a site `y_observed` behind the
    mask, a latent `y_unobserved` behind its opposite, and a deterministic `y`. The package sees
    `y_observed` alone, under the name `y`: what is unobserved integrates to one. In a guide of
    the host it is drawn from the model's own conditional, see `unobserved_sites`.

    Args:
        model: The user's model.
        names: Names of the observed sites.
    """

    def __init__(self, model: Callable[..., Any], names: Sequence[str]) -> None:
        self.__wrapped__ = model
        self.__signature__ = inspect.signature(underlying(model))
        self.names = tuple(names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        with _Join(self.names):
            return self.__wrapped__(*args, **kwargs)


def keep_constants(model: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """`keep_fixed` for the model of a guide, which stays a `JoinedModel` if it is one.

    Args:
        model: The model of a guide.
        names: Sites that the model or a handler fixes, whatever the call.
    """
    if isinstance(model, JoinedModel) and names:
        return JoinedModel(keep_fixed(model.__wrapped__, names), model.names)
    return keep_fixed(model, names)


def known_masks(missing: Sequence[MissingInfo], trace: Trace) -> list[str]:
    """Sites whose mask the guide knows: from an argument, or from NaN, of which a call has none.

    Args:
        missing: Sites of which values may be missing.
        trace: A run of the model with nothing missing.
    """
    return [
        info.site
        for info in missing
        if info.argument or (info.site in trace and not _hides(trace[info.site]))
    ]


def _hides(site: Mapping[str, Any]) -> bool:
    mask = site["mask"]
    return is_masked(site["fn"]) or not (mask is None or torch.all(torch.as_tensor(mask)))


def unobserved_sites(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The host's sites of what an `obs_mask` leaves unobserved, given all else.

    Args:
        model: The model of the guide.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        values: Values of the latents, the complete observed sites and the rows of subsampled
            plates.

    Returns:
        Sites of a trace; none where the call has no such mask.
    """
    if not isinstance(model, JoinedModel):
        return []
    with seeded(0):
        trace = run_model(model.__wrapped__, args, kwargs, values=values)
    names = [f"{info.site}_unobserved" for info in structure.missing]
    return [trace[name] for name in names if name in trace]


class _Join(Messenger):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = {f"{name}_observed": name for name in names}
        self._hidden = {f"{name}_unobserved" for name in names}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            msg["name"] = self._names[msg["name"]]
        elif msg["name"] in self._hidden or (
            msg["infer"].get("_deterministic") and msg["name"] in self._names.values()
        ):
            msg["stop"] = True
