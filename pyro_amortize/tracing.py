"""Running the user's model hidden from every handler, and reading its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

Trace = dict[str, dict[str, Any]]
_SEEDED: ContextVar[int] = ContextVar("seeded", default=0)
_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
_LOCATION_SCALE = (
    dist.Normal,
    dist.LogNormal,
    dist.StudentT,
    dist.Cauchy,
    dist.Laplace,
    dist.Logistic,
    dist.Gumbel,
)
_IS_FIXED = "_amortize_is_fixed"
IS_PATH = "_amortize_is_path"  # marks the sites that `add_path` adds


class _Free(Messenger):
    """Draws observed sites; the host's `uncondition` also redraws deterministic sites."""

    def _pyro_sample(self, msg: Any) -> None:
        is_kept = is_computed(msg) or is_factor(msg) or is_rows(msg) or msg["infer"].get(_IS_FIXED)
        if msg["is_observed"] and not is_kept:
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False


class _Keep(Messenger):
    """Marks observed sites that are to keep their values."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], _IS_FIXED: True}


def is_rows(node: Mapping[str, Any]) -> bool:
    """Whether a site is the statement of a plate, whose value are its rows."""
    return type(node["fn"]).__name__ == "_Subsample"


def free_data(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model with its observed sites drawn, all but those of `keep_fixed`."""
    freed: Callable[..., Any] = _Free()(model)
    return freed


def keep_fixed(model: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """The model with some observed sites that keep their values in every run.

    Args:
        model: The user's model.
        names: Sites that the model or a handler fixes, whatever the call.

    Returns:
        The model itself if there are none.
    """
    kept: Callable[..., Any] = _Keep(names)(model) if names else model
    return kept


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A fixed torch seed inside, the outer random state untouched."""
    states, token = random_state(), _SEEDED.set(_SEEDED.get() + 1)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed keeps a note, with the stack, for each kind of device not there
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(states)
        _SEEDED.reset(token)


def seeded_depth() -> int:
    """In how many fixed seeds, one inside another, the program is."""
    return _SEEDED.get()


def random_state() -> list[Tensor]:
    """The state of torch's generators, for `set_random_state`."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states


def set_random_state(states: list[Tensor]) -> None:
    """Put torch's generators back to where they were."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def with_rows(model: Callable[..., Any], rows: Mapping[str, Any] | None) -> Callable[..., Any]:
    """The model with its subsampled plates at given rows.

    Args:
        model: The user's model.
        rows: For each subsampled plate the indices of its rows; drawn if None or empty.
    """
    at_rows: Callable[..., Any] = poutine.condition(model, data=dict(rows)) if rows else model
    return at_rows


def run_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    batch_shape: tuple[int, ...] = (),
    depth: int = 0,
) -> Trace:
    """One run of the model with nothing observed, hidden from every outer handler.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        values: Values for some sites (constrained) in place of draws.
        batch_shape: Sizes of plates opened to the left of the model's own.
        depth: Number of plate dimensions to the right of them, from `free_depth`.

    Returns:
        The sites by name: sample, deterministic, param and plate sites.
    """
    free = free_data(model)
    if values:
        free = poutine.condition(free, data=dict(values))

    def batched() -> None:
        with ExitStack() as stack:
            for axis, size in enumerate(reversed(batch_shape)):
                name = f"_amortize_batch_{depth + axis}"  # a run may be inside of another
                stack.enter_context(pyro.plate(name, size, dim=-depth - 1 - axis))
            free(*args, **kwargs)

    with poutine.block():
        nodes = poutine.trace(batched).get_trace().nodes
    return read_nodes(nodes)


def free_depth(nesting: int, num_plates: int) -> int:
    """The smallest depth, at least `nesting`, to the left of which plates can be opened.

    A host may keep plates open, of particles say. `block` hides them from a run of the model,
    but their dimensions stay taken.

    Args:
        nesting: Number of plate dimensions of the model.
        num_plates: Number of plates to open.

    Returns:
        The `depth` of `run_model`.
    """
    depth = nesting
    while any(is_taken(-depth - 1 - axis) for axis in range(num_plates)):
        depth += 1
    return depth


def is_taken(dim: int) -> bool:
    """Whether a plate is open at this dimension."""
    try:
        with IndepMessenger("_amortize_probe", 1, dim=dim):
            return False
    except ValueError:
        return True


def read_nodes(nodes: Mapping[str, Any]) -> Trace:
    """Sites by name without outer plates; sequential plates have no dimension and do not count."""
    trace: Trace = {}
    for name, node in nodes.items():
        if name.startswith(("_INPUT", "_RETURN", "_amortize_batch_")):
            continue
        if node["type"] == "param":
            trace[name] = dict(node)
        elif is_rows(node):
            sizes = (node["fn"].size, node["fn"].subsample_size)
            trace[name] = {"type": "plate", "name": name, "args": sizes, "value": node["value"]}
        else:
            frames = [
                frame
                for frame in node["cond_indep_stack"]
                if frame.vectorized and not frame.name.startswith("_amortize_batch_")
            ]
            kind = "deterministic" if is_computed(node) else "sample"
            trace[name] = {**node, "type": kind, "cond_indep_stack": frames}
    return trace


def plate_sizes(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, int]:
    """Size of every plate of a call of the model, subsampled or not."""
    with torch.no_grad(), seeded(0):
        trace = run_model(model, args, kwargs)
    rows = read_subsample_sizes(trace)
    return {
        frame.name: rows.get(frame.name, (frame.size, frame.size))[0]
        for site in trace.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }


def subsample_sizes(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Size of every plate of a call of the model, and the number of rows that it looks at."""
    with torch.no_grad(), seeded(0):
        return read_subsample_sizes(run_model(model, args, kwargs))


def read_subsample_sizes(trace: Trace) -> dict[str, tuple[int, int]]:
    """Size of every plate of a trace, and the number of rows in it."""
    return {
        name: (site["args"][0], site["args"][1] or site["args"][0])
        for name, site in trace.items()
        if site["type"] == "plate"
    }


def drawn_rows(trace: Trace) -> dict[str, Any]:
    """The rows that a trace looks at, for each plate with a subsample size."""
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["args"][1] is not None
    }


def site_values(trace: Trace) -> dict[str, Tensor]:
    """Values of the sample and deterministic sites of a trace (`factor` sites left out)."""
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not is_factor(site))
    }


def is_computed(site: Mapping[str, Any]) -> bool:
    """Whether a site comes from `pyro.deterministic`, or from a reparameterised one."""
    if site["infer"].get("_deterministic"):
        return True
    fn = site["fn"]
    is_point = isinstance(base_distribution(fn), dist.Delta)
    return bool(site["is_observed"]) and is_point and is_masked(fn)


def deterministic_values(trace: Trace) -> dict[str, Tensor]:
    """Values of the deterministic sites of a trace."""
    return {name: site["value"] for name, site in trace.items() if site["type"] == "deterministic"}


def leading_value(site: Mapping[str, Any]) -> Tensor:
    """Value of a deterministic site with the axes of its own plates only, and its event."""
    value = site["value"]
    dims = {frame.dim for frame in site["cond_indep_stack"]}
    depth = max((-dim for dim in dims), default=0)
    if not carries_plates(site):
        return value
    kept = [size for axis, size in enumerate(value.shape) if axis >= depth or axis - depth in dims]
    return value.reshape(kept)


def carries_plates(site: Mapping[str, Any]) -> bool:
    """Whether the value of a deterministic site follows the plates that it is written in."""
    shape, frames = tuple(site["value"].shape), site["cond_indep_stack"]
    depth = max((-frame.dim for frame in frames), default=0)
    own = {frame.dim: frame.size for frame in frames}
    return len(shape) >= depth and all(
        shape[depth + dim] == own.get(dim, 1) for dim in range(-depth, 0)
    )


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site comes from `pyro.factor`."""
    return site["type"] == "sample" and isinstance(base_distribution(site["fn"]), dist.Unit)


def base_distribution(fn: Any) -> Any:
    """A distribution without its independent, expanded and masked wrappers."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def is_masked(fn: Any) -> bool:
    """Whether a distribution is masked, inside or outside its other wrappers."""
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False


def is_hidden(site: Mapping[str, Any]) -> bool:
    """Whether a mask takes the whole density of a site away."""
    if site["mask"] is not None and not torch.any(torch.as_tensor(site["mask"])):
        return True
    fn = site["fn"]
    while isinstance(fn, _WRAPPERS):
        mask = getattr(fn, "_mask", None)
        if mask is not None and not torch.any(torch.as_tensor(mask)):
            return True
        fn = fn.base_dist
    return False


def is_unobserved(name: str) -> bool:
    """Whether a site is what an `obs_mask` leaves unobserved, by the name that the host gives."""
    return name.endswith("_unobserved")


def location_scale(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a distribution on the unconstrained line, if it has them.

    For LogNormal they belong to the logarithm, which is the unconstrained value.

    Args:
        fn: A host distribution.

    Returns:
        Two arrays that broadcast to `fn.shape()`, or None.
    """
    base = base_distribution(fn)
    if isinstance(base, _LOCATION_SCALE):
        loc, scale = base.loc, base.scale
    elif isinstance(base, dist.MultivariateNormal):
        loc, scale = base.loc, base.variance.sqrt()
    else:
        return None
    shape = fn.shape()
    return loc.expand(shape), scale.expand(shape)


def log_densities(trace: Trace) -> dict[str, Tensor]:
    """Log density of every sample site at its value, per batch element, unscaled, in nats."""
    return {
        name: site["fn"].log_prob(site["value"])
        for name, site in trace.items()
        if site["type"] == "sample"
    }
