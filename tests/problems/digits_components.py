"""Probabilistic principal components of scikit-learn's handwritten digits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import multivariate_normal


@dataclass(frozen=True)
class DigitsComponents:
    """`x_i ~ Normal(z_i W + b, noise)`, `z_i ~ Normal(0, I)`: W, b and noise are learned.

    Tipping and Bishop 1999, *Probabilistic principal component analysis*.

    Args:
        num_components: Size of each latent.
        num_rows: Number of images of 8 by 8 pixels.
    """

    num_components: int = 4
    num_rows: int = 1797

    @cached_property
    def images(self) -> np.ndarray:
        """Pixels between 0 and 1, `(num_rows, 64)`."""
        from sklearn.datasets import load_digits

        return load_digits().data / 16

    @property
    def pixel_means(self) -> np.ndarray:
        return self.images.mean(0)

    @property
    def initial_loadings(self) -> np.ndarray:
        """Where learning starts: small and random, `(num_components, 64)`."""
        rng = np.random.default_rng(0)
        return 0.1 * rng.normal(size=(self.num_components, 64))

    def log_evidence(self, loadings, centre, noise) -> np.ndarray:
        """Of each image at given parameters, in nats."""
        covariance = loadings.T @ loadings + noise**2 * np.eye(64)
        return multivariate_normal(centre, covariance).logpdf(self.images)

    def posterior(self, loadings, centre, noise) -> tuple[np.ndarray, np.ndarray]:
        """Means `(num_rows, num_components)` and the covariance that all images share."""
        precision = np.eye(self.num_components) + loadings @ loadings.T / noise**2
        covariance = np.linalg.inv(precision)
        return (self.images - centre) @ loadings.T @ covariance / noise**2, covariance

    def largest_log_evidence(self) -> float:
        """Sum over all images at the maximum of the likelihood (equations 7 and 8)."""
        values = np.sort(np.linalg.eigvalsh(np.cov(self.images.T, bias=True)))[::-1]
        leading, rest = values[: self.num_components], values[self.num_components :]
        log_det = np.log(leading).sum() + len(rest) * np.log(rest.mean())
        return float(-0.5 * self.num_rows * (64 * np.log(2 * np.pi) + log_det + 64))
