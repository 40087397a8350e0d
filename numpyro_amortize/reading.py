"""Reading a model once: every site, plate and dependency that a guide is built from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.inspect import get_dependencies

from numpyro_amortize.arguments import (
    IndexPlates,
    MissingSites,
    bound_arguments,
    group_problems,
    index_argument_problems,
    mask_shape_problem,
    masks_named,
    missing_infos,
    missing_parent_problems,
    missing_problems,
    read_settings,
    size_problems,
    with_nothing_missing,
)
from numpyro_amortize.checks import PlateCheck, argument_problems, plain_data_arguments
from numpyro_amortize.covariates import InputPlates, read_inputs
from numpyro_amortize.discrete import pointer_problems, range_problems, with_labels
from numpyro_amortize.fixed import evidence_problems, fixed_sites, repetition_problems
from numpyro_amortize.levels import GroupInfo, closure
from numpyro_amortize.missing import with_positions
from numpyro_amortize.obs_mask import known_masks
from numpyro_amortize.ordering import coupled_through, needed_parents, order_latents
from numpyro_amortize.sites import name_problems, site_problems
from numpyro_amortize.stand_ins import FlatSpheres, ImproperPriors
from numpyro_amortize.structure import ModelStructure, PlateInfo, SiteInfo
from numpyro_amortize.supports import SUPPORTED, Support, site_support
from numpyro_amortize.tracing import (
    IS_PATH,
    Trace,
    carries_plates,
    drawn_rows,
    free_data,
    is_factor,
    keep_fixed,
    location_scale,
    read_subsample_sizes,
    run_model,
    with_rows,
)

Parents = Literal["auto"] | Mapping[str, Sequence[str]]


def read_structure(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    observed: tuple[str, ...],
    inputs: InputPlates,
    sizes: Mapping[str, str],
    groups: IndexPlates,
    missing: MissingSites = (),
    alternatives: tuple[tuple[str, ...], ...] = (),
    parents: Parents = "auto",
    pointers: Mapping[str, str] | None = None,
) -> ModelStructure:
    """Read the structure of an unmodified model, or report all that stands in the way.

    Args:
        model: The user's model.
        args: Positional arguments of one call.
        kwargs: Keyword arguments of one call.
        observed: Names of the sites that will carry data.
        inputs: For each covariate the plate or plates of its leading dimensions, or None.
        sizes: For each argument that is a plate size, that plate.
        groups: For each index vector the plate it points into and the plate it runs along.
        missing: Observed sites of which values may be missing, or `{mask argument: site}`.
        alternatives: Sets of observed sites that may carry data; none if all do.
        parents: `"auto"`, or for some sites the earlier latents to condition on.
        pointers: For each site whose values number the elements of a plate, that plate.

    Returns:
        The structure.

    Raises:
        ValueError: With every problem found, each naming the site, plate or argument.
    """
    group_infos = tuple(GroupInfo(name, *plates) for name, plates in groups.items())
    arguments = bound_arguments(model, args, kwargs).arguments
    absent = missing_infos(missing)
    problems = index_argument_problems(arguments, group_infos, sizes)
    problems += missing_problems(arguments, absent, observed)
    if () in alternatives:
        problems.append("observed: expected at least one site name in each alternative, got none")
    if problems:  # the model may not even run
        raise _report(problems)
    masked_call = args, kwargs
    args, kwargs = with_nothing_missing(model, args, kwargs, absent)
    with masks_named(arguments, absent):
        problems += name_problems(ImproperPriors(model), args, kwargs)
    if problems:
        raise _report(problems)
    fixed, fixed_problems = fixed_sites(ImproperPriors(model), args, kwargs, observed)
    problems += fixed_problems
    model = keep_fixed(model, fixed)
    proper = ImproperPriors(model)

    def run(seed: int, rows: Mapping[str, Any] | None = None) -> Trace:
        return run_model(with_rows(proper, rows), args, kwargs, jax.random.key(seed))

    trace, again = run(0), run(1)
    problems += proper.problems()
    sites = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not is_factor(site)
    }
    absent = with_positions(absent, arguments, sites)
    masked = known_masks(absent, sites)
    problems += site_problems(sites, observed, fixed, masked, read_subsample_sizes(trace))
    problems += repetition_problems(sites, again, (*fixed, *proper.names))
    plates, plate_problem_list = _read_plates(trace, sites, observed, group_infos)
    problems += plate_problem_list
    problems += group_problems(arguments, group_infos, plates, read_subsample_sizes(trace))
    problems += size_problems(arguments, sizes, plates)
    input_infos, input_problem_list = read_inputs(arguments, inputs, plates, trace, run)
    problems += input_problem_list
    latent_sites, support_problems = _read_latents(sites, again, (*observed, *fixed), plates)
    problems += support_problems
    problems += range_problems({site.name: site.support for site in latent_sites}, run)
    problems += pointer_problems(pointers or {}, latent_sites, plates)
    if problems:
        raise _report(problems)

    infos = {site.name: site for site in latent_sites}
    paths = {name for name in infos if sites[name]["infer"].get(IS_PATH)}
    own = {name: _site_plates(sites[name], plates, is_event=False) for name in sites}
    own |= {
        name: _site_plates(site, plates, is_event=False)
        for name, site in trace.items()
        if is_factor(site)
    }
    order = order_latents(
        list(infos),
        own,
        {name: site.event_plates for name, site in infos.items()},
        {name: plate.size for name, plate in plates.items()},
        paths,
    )
    dependencies = _dependencies(model, args, kwargs, own)
    problems += evidence_problems(fixed, dependencies)
    reach = {name: closure(names, group_infos) for name, names in own.items()}
    coupled = {}
    for name in order:
        found = coupled_through(name, order, dependencies, own, reach)
        if found and found[0] in order and not set(own[found[0]]) <= reach[name]:
            coupled[name] = found[0]  # on crossing plates: an approximation, and printed
            if infos[name].support.is_discrete:
                problems.append(
                    f"site '{name}': is discrete, and its elements depend on each other through "
                    f"site '{found[0]}' on crossing plates, which discrete sites cannot yet. "
                    "Sum it out of the model, or make it continuous"
                )
        elif found:
            problems.append(
                f"site '{name}': its elements along plate '{found[1]}' depend on each other "
                f"through site '{found[0]}', which is outside the plate. Write '{name}' as one "
                "vector-valued site with .to_event(1), or move the shared part out"
            )
    latents = []
    for name in order:
        chosen, pruned, parent_problems = _choose_parents(name, order, dependencies, parents)
        problems += parent_problems
        local = bool(own[name])
        reads_latent = bool(dependencies[name] - {name} - set(observed))
        latents.append(
            replace(
                infos[name],
                parents=chosen,
                pruned=pruned,
                is_conditional=local
                and reads_latent
                and name not in paths  # whose model reads what comes after them
                and location_scale(sites[name]["fn"]) is not None,
                coupled=coupled.get(name),
                points_into=(pointers or {}).get(name),
            )
        )
    plain_data = plain_data_arguments(model, args, kwargs)
    structure = ModelStructure(
        latents=tuple(latents),
        observed=tuple(
            SiteInfo(
                name,
                tuple(site["fn"].event_shape),
                own[name],
                is_discrete=bool(site["fn"].support.is_discrete),
            )
            for name, site in sites.items()
            if name in observed
        ),
        inputs=input_infos,
        plates=plates,
        deterministic=tuple(
            _read_deterministic(site, plates)
            for site in trace.values()
            if site["type"] == "deterministic"
        ),
        factors=tuple(
            SiteInfo(name, (), _site_plates(site, plates, is_event=False))
            for name, site in trace.items()
            if is_factor(site)
        ),
        fixed=tuple(
            SiteInfo(name, tuple(sites[name]["fn"].event_shape), own[name]) for name in fixed
        ),
        settings={
            name: value
            for name, value in read_settings(model, args, kwargs, sizes).items()
            if name not in plain_data
        },
        groups=group_infos,
        missing=absent,
        alternatives=alternatives,
    )
    problems += missing_parent_problems(structure.incomplete, dependencies)
    problems += _mask_shape_problems(structure, arguments)
    problems += _reach_problems(structure)
    masks = [info.argument for info in absent if info.argument]
    problems += argument_problems(model, args, kwargs, observed, (*inputs, *groups, *masks))
    if not problems:
        check = PlateCheck(model, args, kwargs, structure)
        problems = check.noise_problems() or check.problems()
        problems += check.mask_problems(*masked_call)
    if problems:
        raise _report(problems)
    return _with_own_rows(structure, order, dependencies, check.mixing_plates())


def _with_own_rows(
    structure: ModelStructure,
    order: Sequence[str],
    dependencies: Mapping[str, set[str]],
    mixing: set[str],
) -> ModelStructure:
    """Mark local latents that, given all their parents, need the data of their own rows only."""
    latents = tuple(
        replace(
            site,
            is_own_row=bool(site.plates)
            and not site.coupled
            and not mixing & set(site.plates)
            and set(needed_parents(site.name, order, dependencies)) <= set(site.parents),
        )
        for site in structure.latents
    )
    return replace(structure, latents=latents)


def _report(problems: Sequence[str]) -> ValueError:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return ValueError(f"AmortizedGuide cannot be built for this model:\n{lines}")


def _read_plates(
    trace: Trace, sites: Trace, observed: tuple[str, ...], groups: Sequence[GroupInfo]
) -> tuple[dict[str, PlateInfo], list[str]]:
    frames = [frame for name in observed if name in sites for frame in _frames(sites[name])]
    carried = closure([frame.name for frame in frames], groups)
    subsampled = drawn_rows(trace)
    plates: dict[str, PlateInfo] = {}
    for site in trace.values():
        for frame in _frames(site):
            plates[frame.name] = PlateInfo(
                frame.name,
                frame.dim,
                frame.size,
                is_event=frame.name not in carried,
                is_subsampled=frame.name in subsampled,
            )
    problems = [
        f"plate '{plate.name}': is subsampled, but no observed site carries it; use the whole plate"
        for plate in plates.values()
        if plate.is_event and plate.is_subsampled
    ]
    problems += [
        f"groups '{group.name}': points into the subsampled plate '{group.plate}', of which a call "
        "has some elements only; use the whole plate"
        for group in groups
        if group.plate in plates and plates[group.plate].is_subsampled
    ]
    return plates, problems


def _frames(site: Mapping[str, Any]) -> Sequence[Any]:
    """The plates of a site of a trace."""
    return site.get("cond_indep_stack", ())


def _site_plates(
    site: Mapping[str, Any], plates: Mapping[str, PlateInfo], *, is_event: bool
) -> tuple[str, ...]:
    # Once each: a handler that splits a site, as `do`, may enter its plates twice.
    names = dict.fromkeys(frame.name for frame in _frames(site))
    chosen = [name for name in names if plates[name].is_event == is_event]
    return tuple(sorted(chosen, key=lambda name: plates[name].dim))


def _read_deterministic(site: Mapping[str, Any], plates: Mapping[str, PlateInfo]) -> SiteInfo:
    """A deterministic site; its value need not follow the plates that it is written in."""
    shape = jnp.shape(site["value"])
    if not carries_plates(site):
        return SiteInfo(site["name"], shape)
    depth = max((-frame.dim for frame in site["cond_indep_stack"]), default=0)
    return SiteInfo(
        site["name"],
        shape[depth:],
        _site_plates(site, plates, is_event=False),
        _site_plates(site, plates, is_event=True),
    )


def _read_latents(
    sites: Trace, again: Trace, others: Sequence[str], plates: Mapping[str, PlateInfo]
) -> tuple[list[SiteInfo], list[str]]:
    infos, problems = [], []
    for name, site in sites.items():
        if name in others:
            continue
        fn = site["fn"]
        support = with_labels(fn, site_support(fn))
        event_shape = tuple(fn.event_shape)
        if support is None:
            problems.append(
                f"site '{name}': a guide cannot yet map its support {fn.support} to the real "
                f"line; supported are {SUPPORTED}"
            )
            continue
        elsewhere = with_labels(again[name]["fn"], site_support(again[name]["fn"]))
        if elsewhere is not None and elsewhere.centre != support.centre:
            support = replace(support, centre=None)  # it follows other latents: any will do
            elsewhere = replace(elsewhere, centre=None)
        if not support.is_discrete and support != elsewhere:
            problems.append(
                f"site '{name}': its support changes with other latents. Write it as a "
                "transformation of a site with a fixed support"
            )
        if not support.is_discrete and _bounds_ndim(support) > len(event_shape):
            problems.append(
                f"site '{name}': its bounds differ between plate elements. Write it as a "
                "transformation of a site with one support for all"
            )
        infos.append(
            SiteInfo(
                name,
                event_shape,
                _site_plates(site, plates, is_event=False),
                _site_plates(site, plates, is_event=True),
                support,
            )
        )
    return infos, problems


def _bounds_ndim(support: Support) -> int:
    bounds = [bound for bound in (support.lower, support.upper) if bound is not None]
    return max((jnp.ndim(jnp.asarray(bound)) for bound in bounds), default=0)


def _dependencies(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Collection[str],
) -> dict[str, set[str]]:
    """For each of these sites the others that its distribution reads."""
    with handlers.block():
        freed = free_data(FlatSpheres(model))
        found = get_dependencies(freed, args, dict(kwargs))["prior_dependencies"]
    return {child: set(found[child]) - {child} for child in names}


def _choose_parents(
    name: str, order: Sequence[str], dependencies: Mapping[str, set[str]], parents: Parents
) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    earlier = order[: order.index(name)]
    problems = []
    if parents != "auto" and name in parents:
        chosen = tuple(site for site in order if site in parents[name])
        problems += [
            f"parents of site '{name}': '{wrong}' is not an earlier latent; these are {earlier}"
            for wrong in parents[name]
            if wrong not in earlier
        ]
    else:
        chosen = needed_parents(name, order, dependencies)
    return chosen, tuple(site for site in earlier if site not in chosen), problems


def _mask_shape_problems(structure: ModelStructure, arguments: Mapping[str, Any]) -> list[str]:
    """Masks of a call that do not fit the plates of their sites."""
    found = []
    for info in structure.missing:
        mask = arguments.get(info.argument) if info.argument else None
        plates = [structure.plates[name] for name in structure.site(info.site).plates]
        shape = [1] * max((-plate.dim for plate in plates), default=0)
        for plate in plates:
            shape[plate.dim] = plate.size
        if info.has_positions:
            shape += structure.site(info.site).event_shape
        problem = None if mask is None else mask_shape_problem(info, mask, shape)
        drawn = [plate.name for plate in plates if plate.is_subsampled]
        if problem and drawn:
            problem = (
                f"missing '{info.argument}': a mask of rows of the subsampled plate '{drawn[0]}' "
                "is not supported. Mark what is missing by NaN in the data, "
                f"missing='{info.site}', or call the model with the whole plate"
            )
        found.append(problem)
    return [problem for problem in found if problem]


def _reach_problems(structure: ModelStructure) -> list[str]:
    """Latents, their parents and inputs that no features of an observed site can reach."""
    reachable = {level.plates for site in structure.observed for level in structure.levels(site)}
    problems = [
        f"site '{site.name}': no observed site has features on exactly its plates "
        f"{list(site.plates)}. If an index vector leads there, declare it: "
        "groups={'argument': ('plate it points into', 'plate it runs along')}"
        for site in structure.latents
        if site.plates not in reachable
    ]
    for site in structure.latents:
        foreign = structure.foreign_parents(site)
        if foreign and not structure.meeting_site(site, foreign):
            problems.append(
                f"site '{site.name}': depends on {list(foreign)}, whose plates are not among its "
                f"own {list(site.plates)}, and no observed site is in the plates of all of them. "
                "Choose its parents yourself: parents={'" + site.name + "': [...]}"
            )
    problems += [
        f"input '{item.name}': no observed site carries its plates {list(item.plates)}"
        for item in structure.inputs
        if not any(set(item.plates) <= structure.reach(site.plates) for site in structure.observed)
    ]
    return problems
