"""What a guide needs to know of a model: sites, supports, plates, order and parents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

from pyro_amortize.discrete import feature_width
from pyro_amortize.levels import GroupInfo, Level, closure, pooling_levels
from pyro_amortize.supports import Support, event_size


@dataclass(frozen=True)
class PlateInfo:
    """A plate that stays a plate in the guide, or one folded into events.

    Args:
        name: Name of the plate.
        dim: Its batch dimension, negative.
        size: Its size in the call that the structure was read from.
        is_event: Whether no observed site carries it, so that it is an event dimension of
            fixed size.
        is_subsampled: Whether its statement has a subsample size, so that a call of the model
            may look at some rows only; `size` counts these.
    """

    name: str
    dim: int
    size: int
    is_event: bool = False
    is_subsampled: bool = False


@dataclass(frozen=True)
class SiteInfo:
    """One latent or observed site.

    Args:
        name: Name of the site.
        event_shape: Event shape of the site in the model.
        plates: Plates that stay plates in the guide, sorted by dimension.
        event_plates: Plates that become event dimensions, sorted by dimension.
        support: Support of a latent site; plays no part at other sites.
        parents: Latent sites whose values the guide's factor of this site reads.
        pruned: Earlier latents that it does not need.
        is_conditional: Whether its values are standardised by the model's own location and
            scale given its parents.
        is_own_row: Whether, given its parents, only data of its own plate elements matter.
        is_discrete: Whether an observed site has a discrete support.
        coupled: A later latent on crossing plates through which the elements depend on each
            other; the guide correlates them by one common direction.
        points_into: A plate whose elements its values number, for a `PointerDensity`.
    """

    name: str
    event_shape: tuple[int, ...]
    plates: tuple[str, ...] = ()
    event_plates: tuple[str, ...] = ()
    support: Support = Support("real")
    parents: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()
    is_conditional: bool = False
    is_own_row: bool = False
    is_discrete: bool = False
    coupled: str | None = None
    points_into: str | None = None


@dataclass(frozen=True)
class InputInfo:
    """A covariate: an argument of the model, or what it computes from its arguments.

    Args:
        name: Name of the argument or deterministic site.
        plates: Plates that its leading dimensions follow.
        event_shape: Its remaining shape.
        is_site: Whether it is a deterministic site.
    """

    name: str
    plates: tuple[str, ...]
    event_shape: tuple[int, ...]
    is_site: bool = False


@dataclass(frozen=True)
class MissingInfo:
    """An observed site of which values may be missing.

    Args:
        site: Name of the site.
        argument: The model's boolean argument that says which are there, or None: NaN marks
            what is missing.
        has_positions: Whether the argument says so for every position of an event.
    """

    site: str
    argument: str | None = None
    has_positions: bool = False


@dataclass(frozen=True)
class ModelStructure:
    """All that a guide takes from a model, without host objects, so that it can be saved.

    Args:
        latents: Latent sites in guide order.
        observed: Observed sites in model order.
        inputs: Declared covariates.
        plates: Every plate of the model by name.
        deterministic: Deterministic sites in model order.
        factors: `factor` sites, which only bounds that score the model can train.
        fixed: Sites with a value of their own, constants of the model.
        settings: Model arguments that are plain Python values, fixed with the structure.
        groups: Index vectors.
        missing: Observed sites of which values may be missing.
        alternatives: Sets of observed sites that may carry data; none if all do.

    Example:
        >>> structure = ModelStructure(latents=(), observed=(SiteInfo("y", ()),))
        >>> structure.max_plate_nesting
        0
    """

    latents: tuple[SiteInfo, ...]
    observed: tuple[SiteInfo, ...]
    inputs: tuple[InputInfo, ...] = ()
    plates: dict[str, PlateInfo] = field(default_factory=dict)
    deterministic: tuple[SiteInfo, ...] = ()
    factors: tuple[SiteInfo, ...] = ()
    fixed: tuple[SiteInfo, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    groups: tuple[GroupInfo, ...] = ()
    missing: tuple[MissingInfo, ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()

    @property
    def max_plate_nesting(self) -> int:
        """Number of aligned plate dimensions."""
        return max((-plate.dim for plate in self.plates.values()), default=0)

    def site(self, name: str) -> SiteInfo:
        """The site called `name`, whatever its role."""
        others = (*self.deterministic, *self.factors, *self.fixed)
        sites = (*self.latents, *self.observed, *others)
        return next(site for site in sites if site.name == name)

    def unconstrained_size(self, site: SiteInfo) -> int:
        """Number of unconstrained coordinates of one latent event, event plates included."""
        folded = math.prod(self.plates[plate].size for plate in site.event_plates)
        return folded * event_size(site.support, site.event_shape)

    def feature_size(self, site: SiteInfo) -> int:
        """Number of features by which later sites see a latent."""
        return self.unconstrained_size(site) * feature_width(site.support)

    @property
    def plate_dims(self) -> dict[str, int]:
        """Dimension (negative) of every plate."""
        return {name: plate.dim for name, plate in self.plates.items()}

    def reach(self, plates: Sequence[str]) -> set[str]:
        """The plates, and those into which index vectors along them point."""
        return closure(plates, self.groups)

    def levels(self, site: SiteInfo) -> tuple[Level, ...]:
        """Plate sets at which features of an observed site exist, its own first."""
        return pooling_levels(
            site.plates, [latent.plates for latent in self.latents], self.plate_dims, self.groups
        )

    def context_levels(self, site: SiteInfo, observed: SiteInfo) -> tuple[bool, ...]:
        """For each level of an observed site whether a latent's context has it.

        A latent reads the features of its own plates and of every set inside them; given all
        its parents, those of its own plates alone are enough and generalise better.
        """
        own, reach = set(site.plates), self.reach(site.plates)
        return tuple(
            set(level.plates) == own if site.is_own_row else set(level.plates) <= reach
            for level in self.levels(observed)
        )

    def foreign_parents(self, site: SiteInfo) -> tuple[str, ...]:
        """Parents on plates that cross those of a latent, such as items for a student."""
        reach = self.reach(site.plates)
        return tuple(name for name in site.parents if not set(self.site(name).plates) <= reach)

    def meeting_site(self, site: SiteInfo, names: Sequence[str]) -> SiteInfo | None:
        """An observed site whose rows see both a latent and others on crossing plates."""
        wanted = set(site.plates).union(*(self.site(name).plates for name in names))
        return next(
            (each for each in self.observed if wanted <= self.reach(each.plates)),
            None,
        )

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the sites with a value of their own."""
        return tuple(site.name for site in self.fixed)

    @property
    def subsampled(self) -> tuple[str, ...]:
        """Plates of which a call of the model may look at some rows only."""
        return tuple(name for name, plate in self.plates.items() if plate.is_subsampled)

    @property
    def optional(self) -> tuple[str, ...]:
        """Observed sites that carry data in some data sets only."""
        names = [site.name for site in self.observed]
        return tuple(name for name in names if any(name not in each for each in self.alternatives))

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Observed sites of which some or all values may be missing."""
        names = [site.name for site in self.observed]
        return tuple(name for name in names if name in self.optional or self.may_miss(name))

    def companions(self, site: SiteInfo) -> tuple[SiteInfo, ...]:
        """Observed sites whose values each row of an observed site reads beside its own.

        Of two sites in the same plates the later one reads the earlier: what only the pairs
        of their values say, such as a slope, must meet before any pooling. Without plates
        nothing is pooled, and the heads read both.
        """
        if not site.plates:
            return ()
        names = [each.name for each in self.observed]
        return tuple(
            other
            for other in self.observed
            if other != site
            and self.is_over(site, other.plates)
            and (
                not self.is_over(other, site.plates)
                or names.index(other.name) < names.index(site.name)
            )
        )

    def may_miss(self, name: str) -> bool:
        """Whether single values of an observed site may be missing."""
        return any(info.site == name for info in self.missing)

    def has_positions(self, name: str) -> bool:
        """Whether single positions of the events of an observed site may be missing."""
        return any(info.site == name and info.has_positions for info in self.missing)

    def mask_size(self, name: str) -> int:
        """Number of values by which networks see what of an event is missing."""
        if self.has_positions(name):
            return math.prod(self.site(name).event_shape)
        return int(name in self.incomplete)

    def local_plates(self) -> tuple[str, ...]:
        """Plates over whose elements the local latents split, given those drawn before them.

        Nested plates share the outermost one; of crossed plates it is those drawn last.
        """
        local = [site.plates for site in self.latents if site.plates]
        if not local:
            return ()
        last = self.reach(local[-1])
        reaches = [self.reach(plates) for plates in local]
        shared = last.intersection(*(reach for reach in reaches if reach & last))
        for plates in (shared, set(local[-1])):
            is_local = [self.is_over(site, plates) for site in self.latents]
            if plates and is_local == sorted(is_local):
                return tuple(sorted(plates, key=lambda name: self.plates[name].dim))
        return ()

    def is_over(self, site: SiteInfo, plates: Sequence[str] | set[str]) -> bool:
        """Whether every row of a site belongs to one element of these plates."""
        return set(plates) <= self.reach(site.plates)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> ModelStructure:
        """The inverse of `to_dict`."""

        def site(item: dict[str, Any]) -> SiteInfo:
            support = Support.from_dict(item["support"])
            lists = ("event_shape", "plates", "event_plates", "parents", "pruned")
            return SiteInfo(
                **{**item, **{key: tuple(item[key]) for key in lists}, "support": support}
            )

        return cls(
            latents=tuple(site(item) for item in state["latents"]),
            observed=tuple(site(item) for item in state["observed"]),
            inputs=tuple(
                InputInfo(
                    item["name"],
                    tuple(item["plates"]),
                    tuple(item["event_shape"]),
                    item["is_site"],
                )
                for item in state["inputs"]
            ),
            plates={name: PlateInfo(**item) for name, item in state["plates"].items()},
            deterministic=tuple(site(item) for item in state["deterministic"]),
            factors=tuple(site(item) for item in state["factors"]),
            fixed=tuple(site(item) for item in state["fixed"]),
            settings=dict(state["settings"]),
            groups=tuple(GroupInfo(**item) for item in state["groups"]),
            missing=tuple(MissingInfo(**item) for item in state["missing"]),
            alternatives=tuple(tuple(each) for each in state["alternatives"]),
        )

    def differences(self, other: ModelStructure) -> list[str]:
        """What makes `other` a different model for a guide built on `self`, in words.

        Sizes of plates and plain settings may differ from call to call and are compared
        elsewhere; sites, events, supports, plates and inputs may not.
        """
        found = []
        for role in ("latents", "observed", "fixed", "inputs", "groups", "missing"):
            key = attrgetter("site" if role == "missing" else "name")
            mine = {key(item): item for item in getattr(self, role)}
            theirs = {key(item): item for item in getattr(other, role)}
            for name in sorted(mine.keys() ^ theirs.keys()):
                where = "only in the guide's model" if name in mine else "only in this model"
                found.append(f"{role} '{name}': {where}")
            for name in sorted(mine.keys() & theirs.keys()):
                if mine[name] != theirs[name]:
                    found.append(f"{role} '{name}': expected {mine[name]}, got {theirs[name]}")
        if self.alternatives != other.alternatives:
            found.append(
                f"observed sites: expected alternatives {self.alternatives}, got "
                f"{other.alternatives}"
            )
        for name in sorted(self.plates.keys() ^ other.plates.keys()):
            found.append(f"plate '{name}': in one of the two models only")
        for name in sorted(self.plates.keys() & other.plates.keys()):
            own, given = self.plates[name], other.plates[name]
            if (own.dim, own.is_event) != (given.dim, given.is_event):
                found.append(f"plate '{name}': expected {own}, got {given}")
            elif own.is_event and own.size != given.size:
                found.append(
                    f"plate '{name}': no observed site carries it, so its size is fixed; "
                    f"expected {own.size}, got {given.size}"
                )
        return found

    def __str__(self) -> str:
        lines = ["latent sites, in the order in which the guide draws them:"]
        for site in self.latents:
            given = ", ".join((*site.parents, *(observed.name for observed in self.observed)))
            text = f"  {site.name}{self._shape_text(site)} | {given}"
            if site.is_own_row:
                text += " (own rows)"
            if site.points_into:
                text += f" (an element of plate '{site.points_into}')"
            if site.coupled:
                text += f" (elements coupled through {site.coupled}: to one rank)"
            if site.pruned:
                text += f"   (not needed: {', '.join(site.pruned)})"
            lines.append(text)
        lines.append("observed sites and inputs:")
        lines += [
            f"  {site.name}{self._shape_text(site)}"
            + (" (values may be missing)" if self.may_miss(site.name) else "")
            + (" (in some data sets only)" if site.name in self.optional else "")
            for site in self.observed
        ]
        lines += [f"  {item.name} (input) {list(item.plates)}" for item in self.inputs]
        lines += [f"  {item.name} (index into {item.plate}) {[item.along]}" for item in self.groups]
        if self.alternatives:
            sets = " or ".join("{" + ", ".join(each) + "}" for each in self.alternatives)
            lines.append(f"data at {sets}")
        if self.fixed:
            lines.append("constants: " + ", ".join(self.constants))
        return "\n".join(lines)

    def _shape_text(self, site: SiteInfo) -> str:
        text = f" {list(site.plates)}" if site.plates else ""
        if site.event_plates:
            text += f" event over plate {list(site.event_plates)}"
        if site.event_shape:
            text += f" event {site.event_shape}"
        return text
