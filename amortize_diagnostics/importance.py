"""Importance weights: Pareto smoothing, efficiency, evidence, local latents, resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from amortize_diagnostics.pareto import MIN_DRAWS, smooth_tails

Array = NDArray[np.float64]

GOOD, USABLE = 0.5, 0.1  # ESS fractions of a guide's own draws


def psis(log_weights: ArrayLike, *, axis: int = 0) -> tuple[Array, Any]:
    """Smooth importance weights by a generalised Pareto fit to their largest values.

    The `M = min(n / 5, 3 sqrt(n))` largest weights are replaced by the expected order statistics
    `F^-1((j - 0.5) / M)` of the fit, cut off at the largest raw weight, and all are normalised to
    `sum_i w_i = 1`. The shape `khat` of the fit says how heavy the tail is: the weights have
    a finite variance for `khat < 0.5` and a finite mean for `khat < 1`.

    Use it for every weighted average. `khat` speaks for the weighted draws only: a guide that is
    far too wide has a small `khat`, so read the ESS fraction of `importance_summary` beside it.

    Args:
        log_weights: Unnormalised log weights `log p(z, x) - log q(z | x)` in nats, any shape,
            with both densities in the same space. `-inf` is a weight of zero.
        axis: The axis of the draws.

    Returns:
        The normalised smoothed log weights, same shape, and `khat` without `axis` (a float for
        one data set). `khat` is NaN where it is undefined: fewer than 25 draws of positive
        weight, or largest weights that are tied with one another. It is 0 for equal weights, and
        infinite if a few weights exceed the others beyond floating point. Weights whose tail
        cannot be fitted are normalised only.

    Raises:
        ValueError: If a weight is NaN or +inf, or if all weights of a data set are zero.

    Example:
        >>> smoothed, khat = psis([0.0] * 100)
        >>> float(smoothed[0]), float(khat)
        (-4.605170185988092, 0.0)

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling,
        Journal of Machine Learning Research 25.
    """
    draws_last = np.moveaxis(_checked(log_weights, axis), axis, -1)
    smoothed, khat = smooth_tails(draws_last.reshape(-1, draws_last.shape[-1]))
    smoothed = smoothed.reshape(draws_last.shape)
    return np.moveaxis(smoothed, -1, axis), khat.reshape(draws_last.shape[:-1])[()]


@dataclass(frozen=True, eq=False)
class ImportanceSummary:
    """What importance weights say about a guide, at one data set or at each of many.

    Two verdicts, because neither implies the other. The *guide's own draws* are judged by their
    ESS fraction, the lower of that of global and of local latents: at least 0.5 is good, 0.1 to
    0.5 is usable only after weighting, below 0.1 is poor. The *weighted draws* are reliable if
    `khat < khat_threshold`; a guide three times too wide passes that and fails the first.

    `print(summary)` says both in words.

    Args:
        num_draws: Number of draws per data set.
        ess_fraction: `(sum_i w_i)^2 / (n sum_i w_i^2)`, from 1/n to 1.
        khat: Pareto shape of the largest weights, NaN where undefined.
        khat_threshold: `min(1 - 1/log10(n), 0.7)`, NaN with fewer than 25 draws.
        log_evidence: `log p(x)` in nats, up to the constant that the weights lack.
        log_evidence_se: Its standard error in nats, `sqrt((1 - ess_fraction) / (n
            ess_fraction))`; meaningless where `khat` fails.
        num_zero_weight: Number of draws with weight zero: outside the model's support.
        num_guide_draws: How many of the draws are the guide's own, where others were added.
        guide_ess_fraction: ESS fraction of these alone with the guide's weights, local latents
            averaged out.
        local_ess_fraction: ESS fraction of the guide's draws of local latents given the others,
            of the plate element where it is lowest; None without local latents.

    All but the numbers of draws and the threshold are scalars for one data set and arrays of shape
    `(num_datasets,)` for many.

    Example:
        >>> print(importance_summary([-3.0] * 1000))
        Guide's own draws: good (ESS fraction 1.00 of 1000 draws).
        Weighted draws: reliable (Pareto k-hat 0.00, threshold 0.67).
        Log evidence: -3.000 ± 0.000 nats.

    References:
        Dax, Green, Gair, Puerrer, Wildberger, Macke, Buonanno and Schoelkopf (2023), Neural
        importance sampling for rapid and reliable gravitational-wave inference, Physical Review
        Letters 130. Threshold: see `psis`.
    """

    num_draws: int
    ess_fraction: Any
    khat: Any
    khat_threshold: float
    log_evidence: Any
    log_evidence_se: Any
    num_zero_weight: Any
    num_guide_draws: int
    guide_ess_fraction: Any
    local_ess_fraction: Any = None

    @property
    def own_ess_fraction(self) -> Any:
        """What the guide's own draws are judged by: the lower of global and local fractions."""
        if self.local_ess_fraction is None:
            return self.guide_ess_fraction
        return np.minimum(self.guide_ess_fraction, self.local_ess_fraction)

    def __str__(self) -> str:
        """Both verdicts in words."""
        return _one_verdict(self) if np.ndim(self.khat) == 0 else _many_verdicts(self)


def importance_summary(
    log_weights: ArrayLike,
    guide_log_weights: ArrayLike | None = None,
    guide_local_log_weights: ArrayLike | None = None,
) -> ImportanceSummary:
    """Judge a guide by the weights of its draws.

    `log p(x) ~= logsumexp_i(log w_i) - log n` and `ESS / n = (sum_i w_i)^2 / (n sum_i w_i^2)` from
    the raw weights, in nats; `khat` from `psis`.

    Use it on independent draws. With local latents in plates, first take them out
    by `marginalise_local_weights`, else many good local draws multiply to one bad weight.

    Args:
        log_weights: `log p(z, x) - log q(z | x)` in nats, shape `(num_draws,)` or
            `(num_draws, num_datasets)`. `-inf` is counted as a draw of weight zero.
        guide_log_weights: Where the draws are not the guide's alone, but those of a mixture
            with it: the weights `log p(z, x) - log q(z | x)` of the draws that are.
        guide_local_log_weights: Where local latents have been averaged out, the weights of the
            guide's own draws of them, as `marginalise_local_weights` takes them: shape
            `(num_local_draws, *shape of the guide's log weights, plate_size)`.

    Returns:
        The summary, with arrays of shape `(num_datasets,)` in the second case.

    Raises:
        ValueError: If the shape is another, if a weight is NaN or +inf, or if all weights of
            a data set are zero.

    Example:
        >>> summary = importance_summary([[0.0, 0.0], [0.0, -np.inf]])
        >>> summary.ess_fraction, summary.num_zero_weight
        (array([1. , 0.5]), array([0, 1]))

    References:
        See `ImportanceSummary`.
    """
    if np.ndim(log_weights) not in (1, 2):
        raise ValueError(
            "log_weights: expected shape (num_draws,) or (num_draws, num_datasets), got "
            f"{np.shape(log_weights)}. Reshape the data sets to one axis."
        )
    weights = _checked(log_weights, axis=0)
    own = weights if guide_log_weights is None else _checked(guide_log_weights, axis=0)
    _, khat = psis(weights)
    num_draws = weights.shape[0]
    ess_fraction = _ess_fraction(weights)
    enough = num_draws >= MIN_DRAWS
    return ImportanceSummary(
        num_draws=num_draws,
        ess_fraction=ess_fraction,
        khat=khat,
        khat_threshold=min(1.0 - 1.0 / np.log10(num_draws), 0.7) if enough else np.nan,
        log_evidence=logsumexp(weights, axis=0) - np.log(num_draws),
        log_evidence_se=np.sqrt((1.0 - ess_fraction) / (num_draws * ess_fraction)),
        num_zero_weight=np.sum(np.isneginf(weights), axis=0),
        num_guide_draws=own.shape[0],
        guide_ess_fraction=_ess_fraction(own),
        local_ess_fraction=_local_ess_fraction(guide_local_log_weights, own.shape),
    )


def _local_ess_fraction(log_weights: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """`(E v)^2 / E v^2` of the plate element where it is lowest, with the square unbiased.

    With `r` the mean over draws of the others of `mean_k v^2 / (mean_k v)^2` it is
    `(K - r) / ((K - 1) r)`.
    """
    if log_weights is None or len(np.asarray(log_weights)) == 1:  # one draw says nothing
        return None
    local = _finite_or_zero("guide_local_log_weights", log_weights)
    if local.ndim < 2 or local.shape[1:-1] != shape or not local.shape[0] or not local.shape[-1]:
        raise ValueError(
            "guide_local_log_weights: expected shape (num_local_draws, *guide shape, plate_size) "
            f"with guide shape {shape}, got {local.shape}. Put the local draws first and the plate "
            "last."
        )
    log_mean = logsumexp(local, axis=0)
    is_there = np.isfinite(log_mean)  # a draw of the others without any weight has none here
    middle = np.where(is_there, log_mean, 0.0)
    ratio = np.exp(logsumexp(2 * local, axis=0) - 2 * middle) * local.shape[0]
    num = np.maximum(is_there.sum(0), 1)
    mean_ratio = np.maximum(np.where(is_there, ratio, 0.0).sum(0) / num, 1.0)
    fraction = (len(local) - mean_ratio) / ((len(local) - 1) * mean_ratio)
    return np.where(is_there.any(0), np.maximum(fraction, 0.0), 0.0).min(-1)[()]


def _ess_fraction(weights: Array) -> Any:
    """`(sum w)^2 / (n sum w^2)`; rounding may not take it beyond 1."""
    ess = np.exp(2 * logsumexp(weights, axis=0) - logsumexp(2 * weights, axis=0))
    return np.minimum(ess / weights.shape[0], 1.0)


def _own_draws_verdict(ess_fraction: float) -> str:
    if ess_fraction >= GOOD:
        return "good"
    return "usable only after weighting" if ess_fraction >= USABLE else "poor"


def _weighted_verdict(khat: float, threshold: float) -> str:
    if np.isnan(khat):
        return "not judged"
    return "reliable" if khat < threshold else "unreliable"


def _one_verdict(summary: ImportanceSummary) -> str:
    weighted = _weighted_verdict(summary.khat, summary.khat_threshold)
    if weighted == "not judged":
        reason = f"k-hat needs {MIN_DRAWS} draws of positive weight, the largest distinct"
    else:
        reason = f"Pareto k-hat {summary.khat:.2f}, threshold {summary.khat_threshold:.2f}"
    local = summary.local_ess_fraction
    beside = "" if local is None else f", {local:.2f} for local latents"
    lines = [
        f"Guide's own draws: {_own_draws_verdict(summary.own_ess_fraction)} (ESS fraction "
        f"{summary.guide_ess_fraction:.2f} of {summary.num_guide_draws} draws{beside}).",
        f"Weighted draws: {weighted} ({reason}).",
        f"Log evidence: {summary.log_evidence:.3f} ± {summary.log_evidence_se:.3f} nats.",
    ]
    if summary.num_zero_weight:
        lines.append(f"Zero weights: {summary.num_zero_weight} (outside the model's support).")
    return "\n".join(lines)


def _many_verdicts(summary: ImportanceSummary) -> str:
    fractions = summary.own_ess_fraction
    own = [_own_draws_verdict(value) for value in fractions]
    weighted = [_weighted_verdict(value, summary.khat_threshold) for value in summary.khat]
    worst = int(np.argmin(fractions))
    lines = [
        f"{len(own)} data sets, {summary.num_draws} draws each.",
        f"Guide's own draws: {_counts(own)} "
        f"(ESS fraction: median {np.median(fractions):.2f}, "
        f"lowest {fractions[worst]:.2f} at data set {worst}).",
        f"Weighted draws: {_counts(weighted)} "
        f"(Pareto k-hat, threshold {summary.khat_threshold:.2f}).",
    ]
    if np.any(summary.num_zero_weight):
        num_touched = np.count_nonzero(summary.num_zero_weight)
        lines.append(f"Zero weights: in {num_touched} data sets (outside the model's support).")
    return "\n".join(lines)


def _counts(verdicts: list[str]) -> str:
    return ", ".join(f"{verdict} for {verdicts.count(verdict)}" for verdict in sorted({*verdicts}))


def marginalise_local_weights(global_log_weight: ArrayLike, local_log_weight: ArrayLike) -> Array:
    """Weight global draws with the local latents of one plate averaged out.

    `log w_s = log g_s + sum_l log[(1/K) sum_k v_ksl]`, in nats, where `g` is the ratio of all
    that does not belong to the plate and `v` the ratio `p / q` of element `l`: its local latents
    and observations given the globals of draw `s`. Unbiased for the evidence, because the
    elements are independent given the globals.

    Use it when local latents are many: the plain joint weight multiplies one random factor for
    each element, and its k-hat grows with their number. Apply it once for each plate. Elements
    that are not independent given the globals need joint weights.

    Args:
        global_log_weight: Shape `(num_draws, ...)`, in nats.
        local_log_weight: Shape `(num_local_draws, num_draws, ..., plate_size)`, in nats.

    Returns:
        Log weights of the global draws, the shape of `global_log_weight`.

    Raises:
        ValueError: If the shapes do not belong together, or if a weight is NaN or +inf.

    Example:
        >>> local = np.log([[[1.0, 2.0]], [[3.0, 2.0]]])      # 2 local draws, 1 draw, 2 elements
        >>> np.exp(marginalise_local_weights([0.0], local))
        array([4.])
    """
    global_ = _finite_or_zero("global_log_weight", global_log_weight)
    local = _finite_or_zero("local_log_weight", local_log_weight)
    if local.ndim < 2 or local.shape[1:-1] != global_.shape or not local.shape[0]:
        raise ValueError(
            "local_log_weight: expected shape (num_local_draws, *global shape, plate_size) with "
            f"global shape {global_.shape}, got {local.shape}. Put the local draws first and the "
            "plate last."
        )
    return global_ + np.sum(logsumexp(local, axis=0) - np.log(local.shape[0]), axis=-1)


def choose_local_draws(local_log_weight: ArrayLike, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose one local draw per element and global draw in proportion to its weight.

    `P(k | s, l) = v_ksl / sum_j v_jsl`. Together with the weights of `marginalise_local_weights`
    this gives joint draws of global and local latents that target the exact posterior.

    Args:
        local_log_weight: The argument of `marginalise_local_weights`, shape
            `(num_local_draws, ...)`, in nats.
        rng: Source of randomness.

    Returns:
        Indices into the first axis, shape `(...)`. An element whose weights are all zero gets
        index 0; its global draw has weight zero.

    Raises:
        ValueError: If there is no local draw, or if a weight is NaN or +inf.

    Example:
        >>> choose_local_draws([[-np.inf, 0.0], [0.0, -np.inf]], np.random.default_rng(0))
        array([1, 0])
    """
    local = _finite_or_zero("local_log_weight", local_log_weight)
    if local.ndim == 0 or not local.shape[0]:
        raise ValueError(
            "local_log_weight: expected shape (num_local_draws, ...) with at least one draw, got "
            f"{local.shape}. Draw at least one local value per global draw."
        )
    # The Gumbel maximum is a draw from the softmax over the first axis.
    return np.argmax(local + rng.gumbel(size=local.shape), axis=0)


def resample(log_weights: ArrayLike, num_draws: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Resample draws in proportion to their weights, systematically.

    The points `(i + u) / num_draws`, with one uniform `u` for all, are looked up in the cumulated
    weights: each draw is chosen `num_draws * w` times, rounded down or up.

    Use it where equally weighted draws are needed, with smoothed weights from `psis`. Averages
    are more accurate from the weights themselves, and repeated draws are no new information.

    Args:
        log_weights: Log weights of the draws, shape `(num_candidates,)`, any normalisation.
        num_draws: Number of indices to return.
        rng: Source of randomness.

    Returns:
        Increasing indices into the draws, shape `(num_draws,)`. Draws of weight zero never occur.

    Raises:
        ValueError: If the shape is another, if a weight is NaN or +inf, or if all are zero.

    Example:
        >>> resample(np.log([0.5, 0.25, 0.25]), 4, np.random.default_rng(0))
        array([0, 0, 1, 2])
    """
    if np.ndim(log_weights) != 1:
        raise ValueError(
            f"log_weights: expected shape (num_candidates,), got {np.shape(log_weights)}. "
            "Resample one data set at a time."
        )
    weights = _checked(log_weights, axis=0)
    cumulated = np.cumsum(np.exp(weights - weights.max()))
    # An offset in (0, 1] with "left" cannot fall on a weight of zero nor past the last one.
    points = (np.arange(num_draws) + 1.0 - rng.uniform()) / num_draws
    return np.searchsorted(cumulated, points * cumulated[-1], side="left")


def _checked(log_weights: ArrayLike, axis: int) -> Array:
    """Weights as float64 in which every data set has a positive weight."""
    weights = _finite_or_zero("log_weights", log_weights)
    all_zero = np.argwhere(np.all(np.isneginf(weights), axis=axis))
    if all_zero.size or weights.size == 0:
        dataset = f"data set {tuple(int(i) for i in all_zero[0])}" if all_zero.size else "draws"
        raise ValueError(
            f"log_weights: expected a positive weight, got only zeros or none for {dataset}. "
            "Every draw lies outside the model's support: compare the guide's support with it."
        )
    return weights


def _finite_or_zero(name: str, log_weights: ArrayLike) -> Array:
    """Log weights as float64, of which `-inf` (weight zero) is the only non-finite value."""
    weights = np.asarray(log_weights, dtype=np.float64)
    num_bad = int(np.count_nonzero(np.isnan(weights) | np.isposinf(weights)))
    if num_bad:
        raise ValueError(
            f"{name}: expected numbers or -inf, got {num_bad} of {weights.size} that are NaN or "
            "+inf. Look for a density that overflows, or masked data that were not filled."
        )
    return weights
