"""Many small networks that tell two samples apart, trained side by side with NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

_MOST_UNITS = 64
_BATCH = 256
_LEARNING_RATE = 1e-2
_DECAY = 1e-3  # of the weights, as in AdamW
_BETAS = (0.9, 0.999)


class Classifiers:
    """Networks with two hidden layers of `min(10 dim, 64)` units, one for each set of labels.

    Every network sees the same rows, with labels and a choice of rows of its own; one matrix
    product serves all of them. Training is AdamW on cross entropy with a rate that falls to zero.

    Args:
        inputs: Rows, shape `(num_rows, dim)`; they are standardised here.
        labels: 0 or 1, shape `(num_networks, num_rows)`.
        is_used: Which rows each network is trained on, same shape.
        rng: Initial weights and batches.
        num_steps: Number of steps of 256 rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = np.linspace(-1, 1, 200)[:, None]
        >>> both = np.stack([rows[:, 0] > 0, rows[:, 0] < 0])
        >>> networks = Classifiers(rows, both, np.ones_like(both), rng, num_steps=200)
        >>> networks.probability(np.array([[0.8]])).round()[:, 0].tolist()
        [1.0, 0.0]
    """

    def __init__(
        self,
        inputs: Array,
        labels: NDArray,
        is_used: NDArray,
        rng: np.random.Generator,
        *,
        num_steps: int = 600,
    ) -> None:
        spread = inputs.std(0)
        self._middle, self._scale = inputs.mean(0), np.where(spread > 0, spread, 1.0)
        rows = (inputs - self._middle) / self._scale
        num, width = len(labels), min(10 * rows.shape[1], _MOST_UNITS)
        self._weights = _initial_weights(num, (rows.shape[1], width, width, 1), rng)
        moments = [[np.zeros_like(weight) for weight in self._weights] for _ in range(2)]
        targets = np.asarray(labels, float)
        choices = [np.flatnonzero(used) for used in np.asarray(is_used, bool)]
        size = min(_BATCH, min(len(choice) for choice in choices))
        for step in range(num_steps):
            batch = np.stack([choice[rng.integers(len(choice), size=size)] for choice in choices])
            gradients = self._gradients(rows[batch], np.take_along_axis(targets, batch, 1))
            rate = 0.5 * _LEARNING_RATE * (1 + np.cos(np.pi * step / num_steps))
            self._step(gradients, moments, rate, step + 1)

    def probability(self, inputs: Array) -> Array:
        """Probability of label 1 at rows `(num_rows, dim)`, shape `(num_networks, num_rows)`."""
        return expit(self.log_odds(inputs))

    def log_odds(self, inputs: Array) -> Array:
        """Log odds of label 1 at rows `(num_rows, dim)`, shape `(num_networks, num_rows)`."""
        hidden = ((inputs - self._middle) / self._scale)[None]
        return self._layers(hidden)[-1][..., 0]

    def _layers(self, hidden: Array) -> list[Array]:
        """The inputs, both hidden layers after `tanh`, and the logits."""
        found = [hidden]
        for number in range(3):
            weight, bias = self._weights[2 * number : 2 * number + 2]
            value = found[-1] @ weight + bias[:, None]
            found.append(np.tanh(value) if number < 2 else value)
        return found

    def _gradients(self, rows: Array, targets: Array) -> list[Array]:
        layers = self._layers(rows)
        error = (expit(layers[-1]) - targets[..., None]) / rows.shape[1]
        gradients: list[Array] = []
        for number in (2, 1, 0):
            below = layers[number]
            gradients = [np.swapaxes(below, 1, 2) @ error, error.sum(1), *gradients]
            if number:
                error = (error @ np.swapaxes(self._weights[2 * number], 1, 2)) * (1 - below**2)
        return gradients

    def _step(
        self, gradients: list[Array], moments: list[list[Array]], rate: float, number: int
    ) -> None:
        for weight, gradient, first, second in zip(self._weights, gradients, *moments, strict=True):
            first += (1 - _BETAS[0]) * (gradient - first)
            second += (1 - _BETAS[1]) * (gradient**2 - second)
            root = np.sqrt(second / (1 - _BETAS[1] ** number)) + 1e-8
            weight -= rate * (first / (1 - _BETAS[0] ** number) / root + _DECAY * weight)


def _initial_weights(num: int, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    weights = []
    for num_in, num_out in zip(sizes[:-1], sizes[1:], strict=True):
        weights.append(rng.normal(size=(num, num_in, num_out)) / np.sqrt(num_in))
        weights.append(np.zeros((num, num_out)))
    return weights
