"""Classifier two-sample tests: of two samples, and of a guide at one data set."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from amortize_diagnostics.classifier import Classifiers
from amortize_diagnostics.distances import TwoSampleTest, check_num_null, checked_samples, compared

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassifierTest:
    """How well a classifier tells two samples apart.

    Args:
        accuracy: Fraction of left-out rows that it assigns to their sample: 0.5 if the samples
            look alike, 1 if they are separable. Of the best classifier it is
            `1/2 + (total variation distance) / 2`.
        se: Standard error of `accuracy`.
        by_fold: Accuracy on each fold.
        p_value: Probability of such an accuracy by guessing.

    Example:
        >>> print(ClassifierTest(0.62, 0.01, np.array([0.6, 0.64]), 1e-9))
        accuracy 0.620 ± 0.010 (p = 1e-09)
    """

    accuracy: float
    se: float
    by_fold: Array
    p_value: float

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.3f} ± {self.se:.3f} (p = {self.p_value:.2g})"


def c2st(
    samples_p: ArrayLike,
    samples_q: ArrayLike,
    rng: np.random.Generator,
    *,
    num_folds: int = 5,
    num_steps: int = 600,
) -> ClassifierTest:
    """Classifier two-sample test: the accuracy of a small network, by cross-validation.

    Use it on draws of a guide beside a reference posterior. It needs no density and sees
    differences of any shape, if there are enough rows to learn them from: in ten dimensions two
    thousand are few. The network is one of NumPy, so that nothing else is needed. Published
    benchmarks train one of the same size by scikit-learn, and find about the same.

    Args:
        samples_p: Shape `(num, dim)`.
        samples_q: Shape `(num, dim)`, a reference if there is one. Labels go in as ones and zeros.
        rng: Folds, initial weights and batches.
        num_folds: Number of folds.
        num_steps: Steps of training of each network.

    Returns:
        The accuracy with its error and p-value.

    Raises:
        ValueError: If shapes do not belong together, if a value is not finite, or if there are
            fewer than 5 rows for each fold.

    Warns:
        UserWarning: If the samples differ in size, and the larger one is thinned; or if rows
            repeat, as resampled draws do: copies of a row stay in one fold.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> print(c2st(rng.normal(size=(500, 1)), 1 + rng.normal(size=(500, 1)), rng))
        accuracy 0.690 ± 0.015 (p = 1.5e-33)

    References:
        Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, arXiv:1610.06545,
        section 3; Lueckmann and others (2021), arXiv:2101.04653, for its use on posteriors.
    """
    first, second = checked_samples(samples_p, samples_q)
    if len(first) != len(second):
        num = min(len(first), len(second))
        warnings.warn(
            f"samples_p and samples_q: {len(first)} and {len(second)} rows, of which {num} of each "
            "are compared",
            stacklevel=2,
        )
        first, second = (each[rng.permutation(len(each))[:num]] for each in (first, second))
    if num_folds < 2 or len(first) < 5 * num_folds:
        raise ValueError(
            f"num_folds: expected 2 or more, and 5 rows of each sample for each, got {num_folds} "
            f"folds of {len(first)} rows."
        )
    rows = np.concatenate([first, second])
    labels = np.repeat([0.0, 1.0], len(first))
    group, num_distinct = _groups(rows)
    if num_distinct < len(rows):
        warnings.warn(
            f"samples_p and samples_q: {len(rows) - num_distinct} of {len(rows)} rows are copies "
            "of others; copies stay in one fold",
            stacklevel=2,
        )
    folds = rng.permutation(np.arange(num_distinct) % num_folds)[group]
    is_left_out = folds == np.arange(num_folds)[:, None]
    networks = Classifiers(
        rows, np.tile(labels, (num_folds, 1)), ~is_left_out, rng, num_steps=num_steps
    )
    is_right = (networks.probability(rows) > 0.5) == labels
    by_fold = np.array(
        [right[out].mean() for right, out in zip(is_right, is_left_out, strict=True)]
    )
    accuracy = float(is_right[is_left_out].mean())
    return ClassifierTest(
        accuracy=accuracy,
        se=float(np.sqrt(accuracy * (1 - accuracy) / len(rows))),
        by_fold=by_fold,
        p_value=float(norm.sf((accuracy - 0.5) * 2 * np.sqrt(len(rows)))),
    )


def _groups(rows: Array) -> tuple[NDArray[np.intp], int]:
    """For each row the number of its value, and how many values there are."""
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    return group.reshape(-1), len(distinct)


class LocalC2ST:
    """Where a guide is wrong: a classifier two-sample test at single data sets, without references.

    One network learns to tell joint simulations `(z, x)` from `(z~, x)` with `z~` of the guide. At
    its best `d(z, x) = q / (q + p)`, so that `t(x) = E_q (d(z, x) - 1/2)^2` is zero exactly where
    the guide is exact. The null is that of networks trained with `z` and `z~` of each pair
    exchanged at random, evaluated at the same draws.

    Use it on simulations that training has not seen, a thousand or more, to ask about single data
    sets afterwards: each costs no more than a pass. Its power is that of the network, far less
    than that of importance weights where the model has a density. Pass the guide's context or
    summaries for data with many numbers.

    Args:
        truths: Latents of simulations, shape `(num_datasets, num_latents)`.
        draws: One draw of the guide for each, same shape.
        data: Their data or summaries, `(num_datasets, data_size)`.
        rng: Exchanges, initial weights and batches.
        num_null: Number of networks of the null.
        num_steps: Steps of training of each network.

    Raises:
        ValueError: If shapes do not belong together, if a value is not finite, if there are fewer
            than 100 data sets, or if `num_null` is below 19.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(400, 1))
        >>> x = z + rng.normal(size=(400, 1))
        >>> wrong = 3.0 + rng.normal(size=(400, 1))
        >>> local = LocalC2ST(z, wrong, x, rng, num_null=19, num_steps=100)
        >>> print(local.test(3.0 + rng.normal(size=(200, 1)), [0.0]).p_value)
        0.05

    References:
        Linhart, Gramfort and Rodrigues (2023), L-C2ST: local diagnostics for posterior
        approximations in simulation-based inference, arXiv:2306.03580, equation 9 and algorithm 2.
    """

    def __init__(
        self,
        truths: ArrayLike,
        draws: ArrayLike,
        data: ArrayLike,
        rng: np.random.Generator,
        *,
        num_null: int = 99,
        num_steps: int = 600,
    ) -> None:
        check_num_null(num_null)
        arrays = [np.asarray(each, float) for each in (truths, draws, data)]
        shapes = [array.shape for array in arrays]
        fits = all(len(shape) == 2 for shape in shapes) and shapes[0] == shapes[1]
        if not fits or len(arrays[0]) != len(arrays[2]) or len(arrays[0]) < 100:
            raise ValueError(
                "truths, draws and data: expected shapes (num_datasets, num_latents) twice and "
                f"(num_datasets, data_size) with 100 data sets or more, got {shapes}."
            )
        for name, array in zip(("truths", "draws", "data"), arrays, strict=True):
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{name}: expected finite numbers, got some that are not.")
        self._sizes = arrays[0].shape[1], arrays[2].shape[1]
        num = len(arrays[0])
        pairs = [np.concatenate([array, arrays[2]], 1) for array in arrays[:2]]
        swap = rng.uniform(size=(num_null, num)) < 0.5
        swap = np.concatenate([np.zeros((1, num), bool), swap]).astype(float)
        labels = np.concatenate([swap, 1 - swap], 1)
        self._networks = Classifiers(
            np.concatenate(pairs), labels, np.ones_like(labels), rng, num_steps=num_steps
        )

    def test(self, draws: ArrayLike, data: ArrayLike) -> TwoSampleTest:
        """Test the guide at one data set.

        Args:
            draws: Draws of the guide there, shape `(num_draws, num_latents)`.
            data: The data or summaries, shape `(data_size,)`.

        Returns:
            The statistic, its null and p-value.

        Raises:
            ValueError: If shapes do not belong to those of training, or a value is not finite.
        """
        probability = self.probability(draws, data)
        statistics = np.mean((probability - 0.5) ** 2, axis=1)
        return compared(float(statistics[0]), statistics[1:])

    def probability(self, draws: ArrayLike, data: ArrayLike) -> Array:
        """What the network, and those of the null, make of each draw.

        Above 0.5 the guide puts more mass at a draw than the posterior does, below it less: a map
        of where it is wrong.

        Args:
            draws: As in `test`.
            data: As in `test`.

        Returns:
            Shape `(1 + num_null, num_draws)`, the network itself first.

        Raises:
            ValueError: As `test`.
        """
        rows, value = np.asarray(draws, float), np.asarray(data, float)
        if rows.ndim != 2 or (rows.shape[1], *value.shape) != self._sizes:
            raise ValueError(
                f"draws and data: expected shapes (num_draws, {self._sizes[0]}) and "
                f"({self._sizes[1]},), got {rows.shape} and {value.shape}. Test one data set at a "
                "time."
            )
        if not (np.all(np.isfinite(rows)) and np.all(np.isfinite(value))):
            raise ValueError("draws and data: expected finite numbers, got some that are not.")
        given = np.broadcast_to(value, (len(rows), len(value)))
        return self._networks.probability(np.concatenate([rows, given], 1))
