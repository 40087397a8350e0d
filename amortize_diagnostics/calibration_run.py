"""Feeds draws, block by block, to every check of a guide as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from amortize_diagnostics.calibration import Calibration, recovery_row
from amortize_diagnostics.calibration_table import DENSITIES, TARP, CalibrationTable
from amortize_diagnostics.joint_distance import JointDistance
from amortize_diagnostics.local_errors import ErrorsAtData
from amortize_diagnostics.paired import check_numbers
from amortize_diagnostics.tally import Tally

Array = NDArray[np.float64]

_OUTSIDE = 0.99  # of draws at density zero: the model gives no density to compare
_MOST_LOCAL = 200  # draws that a classifier looks at; it costs more than all other checks
_HEAVY = 30.0  # robust standard deviations that no light tail reaches


class CalibrationRun:
    """Collects draws of a guide for simulated data, and judges it by all of them.

    Blocks of draws are counted and forgotten, so that memory does not grow with their number.

    Args:
        truths: By latent site the values that the data were simulated from, `(num_datasets, ...)`,
            on the constrained space.
        rng: Breaks ties, draws reference points, and weighs pooled ranks.
        densities: `{"log_likelihood": ..., "log_joint": ...}` of the model at the truths, shape
            `(num_datasets,)`; leave out what the model does not have.
        log_guide: Log density of the guide at the truths, `(num_datasets,)`; None if it has none.
        past: Latents of other simulations by site, `(num_past, ...)`: the prior. Those of
            `truths` if None.
        data: Data, `(num_datasets, data_size)`, NaN where missing.
        past_data: Data of the other simulations, `(num_past, data_size)`.
        dims: By latent the names of its axes after that of the data sets.
        plates: Names of those axes that are plates, over which ranks are pooled, too.
        local: What `LocalErrors` has learned on other simulations, at these data; None for no
            local check.
        notes: What else a reader of the result should know.

    Raises:
        ValueError: If there is no latent, if there are fewer than 50 data sets, if shapes do not
            belong together, or if a truth is NaN.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=300)
        >>> y = z + 0.5 * rng.normal(size=300)
        >>> run = CalibrationRun({"z": z}, rng)
        >>> for _ in range(3):  # draws that are too narrow, in blocks
        ...     run.add({"z": 0.8 * y + 0.3 * rng.normal(size=(100, 300))})
        >>> found = run.result()
        >>> found.verdict
        'not calibrated: z too narrow (2 of 2 checks reject)'

    References:
        See `posterior_ranks`, `hpd_coverage`, `recovery` and `tarp`.
    """

    def __init__(
        self,
        truths: Mapping[str, ArrayLike],
        rng: np.random.Generator,
        *,
        densities: Mapping[str, ArrayLike] | None = None,
        log_guide: ArrayLike | None = None,
        past: Mapping[str, ArrayLike] | None = None,
        data: ArrayLike | None = None,
        past_data: ArrayLike | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        plates: Sequence[str] = (),
        local: ErrorsAtData | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if not truths:
            raise ValueError("truths: expected one latent site or more, got none. Pass latents.")
        arrays = {name: np.asarray(value, float) for name, value in truths.items()}
        lengths = {name: array.shape[:1] for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or () in lengths.values():
            raise ValueError(
                "truths: expected arrays with one leading axis of data sets, got shapes "
                f"{ {name: array.shape for name, array in arrays.items()} }."
            )
        self.num_datasets = len(next(iter(arrays.values())))
        check_numbers(self.num_datasets, 20, ("draws", "truths"))
        self._rng, self._notes = rng, list(notes)
        self._past = {name: np.asarray(value, float) for name, value in (past or truths).items()}
        self._latents = {
            name: Tally(f"site '{name}'", array, squash=self._squash(name))
            for name, array in arrays.items()
        }
        self._densities = {
            name: Tally(DENSITIES[name], value) for name, value in (densities or {}).items()
        }
        # Regions of highest density are ranked from the densest value on.
        self._guide = (
            None if log_guide is None else Tally("log density of the guide", -np.asarray(log_guide))
        )
        ordered = {name: self._past[name] for name in arrays}
        self._distance = JointDistance(
            ordered, self.num_datasets, rng, data=data, past_data=past_data
        )
        self._joint = {
            name: Tally(TARP[name], value) for name, value in self._distance(arrays).items()
        }
        self._local = local
        if local is not None:
            self._odds = Tally("log odds of a classifier", local(arrays))
            self._errors = np.zeros(self.num_datasets)
        self._dims = {name: tuple(each) for name, each in (dims or {}).items()}
        self._plates = set(plates)

    def add(
        self,
        draws: Mapping[str, ArrayLike],
        *,
        densities: Mapping[str, ArrayLike] | None = None,
        log_guide: ArrayLike | None = None,
    ) -> None:
        """Count a block of draws.

        Args:
            draws: By latent site, `(num_block, num_datasets, ...)`.
            densities: Those of the model at the draws, `(num_block, num_datasets)`; blocks may
                leave them out, if they cost much. NaN leaves a density out, with a note.
            log_guide: Log density of the guide at the draws, same shape.

        Raises:
            ValueError: If sites or shapes do not belong to those of the truths, or a value is NaN.
        """
        if set(draws) != set(self._latents):
            raise ValueError(
                f"draws: expected the sites {sorted(self._latents)} of the truths, got "
                f"{sorted(draws)}."
            )
        for name, tally in self._latents.items():
            tally.add(draws[name])
        for name, value in (densities or {}).items():
            self._add_density(name, np.asarray(value, float))
        if self._guide is not None and log_guide is not None:
            self._guide.add(-np.asarray(log_guide, float))
        ordered = {name: draws[name] for name in self._latents}
        for name, value in self._distance(ordered, batch_dims=2).items():
            self._joint[name].add(value)
        if self._local is not None and self._odds.num_draws < _MOST_LOCAL:
            left = _MOST_LOCAL - self._odds.num_draws
            some = {name: np.asarray(value)[:left] for name, value in draws.items()}
            odds = self._local(some, batch_dims=2)
            self._odds.add(odds)
            self._errors += np.sum((expit(odds) - 0.5) ** 2, axis=0)

    def _add_density(self, name: str, values: Array) -> None:
        if name not in self._densities:  # left out before
            return
        num_bad = int(np.count_nonzero(np.isnan(values)))
        if num_bad:
            del self._densities[name]
            self._notes.append(
                f"{DENSITIES[name]}: NaN at {num_bad} of {values.size} draws, so that it is not "
                "certified; look for latents at which the model overflows"
            )
        else:
            self._densities[name].add(values)

    def result(self) -> Calibration:
        """The table and what is behind it.

        Raises:
            ValueError: If there are fewer than 20 draws, or if every latent is constant.
        """
        num_draws = next(iter(self._latents.values())).num_draws
        check_numbers(self.num_datasets, num_draws, ("draws", "truths"))
        table = CalibrationTable(self._rng)
        pit, recoveries, dims = {}, {}, dict(self._dims)
        for name, tally in self._latents.items():
            moving = ~tally.is_constant
            if not moving.any():
                self._notes.append(f"site '{name}' is constant: nothing to rank")
                continue
            ranks = tally.ranks(self._rng).pit
            pit[name] = ranks
            flat = ranks.reshape(self.num_datasets, -1)[:, moving.ravel()]
            if moving.all():
                is_pooled = bool(self._plates.intersection(self._dims.get(name, ())))
            else:
                is_pooled = False
                self._notes.append(
                    f"site '{name}': {np.count_nonzero(~moving)} of {moving.size} of its numbers "
                    "are constant and were left out"
                )
            table.add_latent(name, flat, is_pooled=is_pooled)
            variance = tally.squashed(self._past[name]).var(0, ddof=1)
            recoveries[name] = tally.recovery(np.where(variance > 0, variance, 1.0))
            table.rows.append(recovery_row(name, recoveries[name]))
        if not pit:
            raise ValueError(
                f"truths: expected latents that vary, got constants only: {sorted(self._latents)}."
            )
        self._add_densities(table, pit)
        if self._guide is not None and self._guide.num_draws:
            pit["density_region"] = self._guide.ranks(self._rng).pit
            table.add_coverage("all latents", "density regions", pit["density_region"])
        for name, tally in self._joint.items():
            pit[name] = tally.ranks(self._rng).pit
            table.add_tarp(name, pit[name])
        if self._distance.num_left_out:
            self._notes.append(
                f"TARP reads {self._distance.num_scalars} numbers spread over all sites and leaves "
                f"out {self._distance.num_left_out}"
            )
        errors = None
        if self._local is not None:
            errors = self._errors / self._odds.num_draws
            pit["local"] = self._odds.ranks(self._rng).pit
            table.add_local(pit["local"], errors)
            if self._local.num_left_out:
                self._notes.append(
                    f"the local check leaves out {self._local.num_left_out} numbers, spread over "
                    "all sites"
                )
        if (
            "tarp_data" not in self._joint
            and self._local is None
            and not any(name in pit for name in DENSITIES)
        ):
            self._notes.append(
                "nothing here reads the data: a guide that returns the prior would pass"
            )
        for name in pit.keys() & self._latents.keys():
            dims.setdefault(name, ())
        return Calibration(
            num_datasets=self.num_datasets,
            num_draws=num_draws,
            rows=table.adjusted(),
            pit=pit,
            recoveries=recoveries,
            notes=tuple(self._notes + table.notes),
            dims={name: each for name, each in dims.items() if name in pit and each},
            local_errors=errors,
        )

    def _squash(self, name: str) -> tuple[Array, Array] | None:
        """Location and scale of a site whose prior has no variance to speak of."""
        past = self._past[name]
        low, location, high = np.quantile(past, [0.25, 0.5, 0.75], axis=0)
        scale = np.where(high > low, high - low, 1.0) / 1.349
        if np.max(np.abs(past - location) / scale) < _HEAVY or not np.all(high > low):
            return None
        self._notes.append(
            f"site '{name}': its prior has heavy tails, so that z-scores and contraction are those "
            "of its arcsinh in robust units"
        )
        return location, scale

    def _add_densities(self, table: CalibrationTable, pit: dict[str, Array]) -> None:
        for name, tally in self._densities.items():
            if not tally.num_draws:
                continue
            if tally.fraction_minus_infinity > _OUTSIDE and np.all(np.isfinite(tally.truths)):
                percent = 100 * tally.fraction_minus_infinity
                self._notes.append(
                    f"{DENSITIES[name]}: zero at {percent:.0f} % of the draws, as of data that the "
                    "latents determine: what needs the likelihood is not certified"
                )
            elif tally.is_constant.all():
                self._notes.append(f"{DENSITIES[name]} is constant: nothing to rank")
            else:
                pit[name] = tally.ranks(self._rng).pit
                table.add_density(name, pit[name])
