"""mu ~ Normal(0, 1), tau ~ HalfNormal(1), theta_g ~ Normal(mu, tau); rows of ragged groups."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp
from scipy.stats import halfnorm, norm


@dataclass(frozen=True)
class GroupedNormal:
    """y_n ~ Normal(theta[group[n]], noise), group g with `counts[g]` rows, one of them empty.

    Closed form given tau; over tau by quadrature.
    """

    counts: tuple[int, ...] = (3, 0, 1, 5, 2, 8, 4, 1)
    noise: float = 1.0
    num_nodes: int = 400

    @property
    def num_groups(self):
        return len(self.counts)

    @property
    def num_latents(self):
        return 2 + self.num_groups

    @cached_property
    def group(self):
        """Index vector from rows to groups, in an order that is not sorted."""
        sorted_ = np.repeat(np.arange(self.num_groups), self.counts)
        return np.random.default_rng(0).permutation(sorted_)

    def sample_joint(self, rng, num):
        mu, tau = rng.normal(size=num), np.abs(rng.normal(size=num))
        theta = mu[:, None] + tau[:, None] * rng.normal(size=(num, self.num_groups))
        y = theta[:, self.group] + self.noise * rng.normal(size=(num, len(self.group)))
        return {"mu": mu, "tau": tau, "theta": theta}, {"y": y}

    def log_posterior(self, latents, observations):
        mu, tau, theta = latents["mu"], latents["tau"], latents["theta"]
        joint = norm.logpdf(mu) + halfnorm.logpdf(tau)
        joint += norm.logpdf(theta, mu[:, None], tau[:, None]).sum(1)
        joint += norm.logpdf(observations["y"], theta[:, self.group], self.noise).sum(1)
        return joint - self.log_evidence(observations)

    def sample_posterior(self, rng, observations):
        """Tau by inversion on the nodes, the rest in closed form."""
        log_p = self._log_joint_of_tau(observations) + np.log(self._nodes[1])
        weights = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
        uniform = rng.uniform(size=(len(weights), 1))
        number = np.minimum((weights.cumsum(1) < uniform).sum(1), self.num_nodes - 1)
        tau = self._nodes[0][number]
        precision, mean = self._group_moments(observations)
        variance = tau[:, None] ** 2 + np.where(precision > 0, 1 / np.maximum(precision, 1e-9), 0)
        weight = np.where(precision > 0, 1 / variance, 0)
        total = 1 + weight.sum(1)
        mu = (weight * mean).sum(1) / total + rng.normal(size=len(tau)) / np.sqrt(total)
        own = 1 / tau[:, None] ** 2 + precision
        theta = (mu[:, None] / tau[:, None] ** 2 + precision * mean) / own
        theta = theta + rng.normal(size=theta.shape) / np.sqrt(own)
        return {"mu": mu, "tau": tau, "theta": theta}

    def log_evidence(self, observations):
        log_weights = np.log(self._nodes[1])
        return logsumexp(self._log_joint_of_tau(observations) + log_weights, axis=1)

    @cached_property
    def _nodes(self):
        """Midpoint nodes of tau and their widths, on a logarithmic scale near zero."""
        edges = np.concatenate([[0.0], np.geomspace(1e-3, 6.0, self.num_nodes)])
        return (edges[1:] + edges[:-1]) / 2, np.diff(edges)

    def _group_moments(self, observations):
        """Precision and mean of each group's rows; mean 0 of an empty one."""
        y = observations["y"]
        sums = np.stack([y[:, self.group == g].sum(1) for g in range(self.num_groups)], axis=1)
        counts = np.array(self.counts)
        return counts / self.noise**2 + 0 * sums, sums / np.maximum(counts, 1)

    def _log_joint_of_tau(self, observations):
        """log p(tau, y) at every node, shape (num, nodes): mu and theta integrated out."""
        y, counts = observations["y"], np.array(self.counts)
        _, mean = self._group_moments(observations)
        residual = y - mean[:, self.group]
        log_p = norm.logpdf(residual, 0, self.noise).sum(1)[:, None]
        filled = counts > 0
        # Within groups: N(y; mean) as a density of the mean of n rows times a constant.
        size = counts[filled]
        log_p = log_p + 0.5 * np.log(2 * np.pi * self.noise**2 / size).sum()
        tau = self._nodes[0]
        variance = tau[:, None] ** 2 + self.noise**2 / size
        precision = 1 / variance
        total = 1 + precision.sum(1)
        centre = np.einsum("ng,kg->nk", mean[:, filled], precision) / total
        quadratic = np.einsum("ng,kg->nk", mean[:, filled] ** 2, precision) - total * centre**2
        log_det = np.log(2 * np.pi * variance).sum(1) + np.log(total)
        return log_p - 0.5 * (quadratic + log_det) + halfnorm.logpdf(tau)
