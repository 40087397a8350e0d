"""Discrete latents whose posterior is known by enumeration."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from scipy.special import logsumexp
from scipy.stats import bernoulli, norm, poisson


def _choose(rng, log_p):
    """One index for each row of unnormalised log probabilities."""
    p = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    uniform = rng.uniform(size=(len(p), 1))
    return np.minimum((p.cumsum(1) < uniform).sum(1), p.shape[1] - 1)


@dataclass(frozen=True)
class MixtureAssignments:
    """mu_k ~ Normal(centre_k, spread); z_n ~ Categorical(weights); y_n ~ Normal(mu[z_n], noise).

    Given all assignments the rest is conjugate, and they are few enough to add up.
    """

    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    centres: tuple[float, ...] = (-1.5, 0.0, 1.5)
    spread: float = 0.7
    noise: float = 0.6
    num_rows: int = 5

    @property
    def num_latents(self):
        return len(self.weights) + self.num_rows

    def sample_joint(self, rng, num):
        mu = rng.normal(self.centres, self.spread, size=(num, len(self.centres)))
        z = rng.choice(len(self.weights), p=self.weights, size=(num, self.num_rows))
        y = rng.normal(np.take_along_axis(mu, z, 1), self.noise)
        return {"mu": mu, "z": z}, {"y": y}

    def log_posterior(self, latents, observations):
        mu, z, y = latents["mu"], latents["z"].astype(int), observations["y"]
        joint = norm.logpdf(mu, self.centres, self.spread).sum(1)
        joint += np.log(self.weights)[z].sum(1)
        joint += norm.logpdf(y, np.take_along_axis(mu, z, 1), self.noise).sum(1)
        return joint - self.log_evidence(observations)

    def log_evidence(self, observations):
        return logsumexp(self._log_joint_of_assignments(observations["y"]), axis=1)

    def sample_posterior(self, rng, observations):
        y = observations["y"]
        z = self._assignments[_choose(rng, self._log_joint_of_assignments(y))]
        members = z[:, :, None] == np.arange(len(self.weights))
        precision = self.spread**-2 + members.sum(1) / self.noise**2
        total = np.array(self.centres) / self.spread**2
        mean = (total + (members * y[:, :, None]).sum(1) / self.noise**2) / precision
        return {"mu": rng.normal(mean, precision**-0.5), "z": z}

    def assignment_probabilities(self, mu, y):
        """Of each row given the means, shape (num, num_rows, components)."""
        log_p = np.log(self.weights) + norm.logpdf(y[:, :, None], mu[:, None, :], self.noise)
        return np.exp(log_p - logsumexp(log_p, axis=2, keepdims=True))

    @cached_property
    def _assignments(self):
        return np.array(list(product(range(len(self.weights)), repeat=self.num_rows)))

    def _log_joint_of_assignments(self, y):
        """log p(z, y) of every assignment, the means integrated out: (num, assignments)."""
        columns = []
        for z in self._assignments:
            column = np.full(len(y), np.log(self.weights)[z].sum())
            for k, centre in enumerate(self.centres):
                own = y[:, z == k]
                if own.shape[1]:
                    # By Bayes at the posterior mean of mu_k.
                    precision = self.spread**-2 + own.shape[1] / self.noise**2
                    mean = (centre / self.spread**2 + own.sum(1) / self.noise**2) / precision
                    column = column + norm.logpdf(mean, centre, self.spread)
                    column += norm.logpdf(own, mean[:, None], self.noise).sum(1)
                    column -= norm.logpdf(0.0, 0.0, precision**-0.5)
            columns.append(column)
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class PoissonCount:
    """k ~ Poisson(rate); y ~ Normal(k, noise)."""

    rate: float = 3.0
    noise: float = 1.0
    num_latents: int = 1
    largest: int = 60

    def sample_joint(self, rng, num):
        k = rng.poisson(self.rate, size=num)
        return {"k": k}, {"y": rng.normal(k, self.noise)}

    def log_posterior(self, latents, observations):
        k, y = latents["k"], observations["y"]
        joint = poisson.logpmf(k, self.rate) + norm.logpdf(y, k, self.noise)
        return joint - self.log_evidence(observations)

    def log_evidence(self, observations):
        return logsumexp(self._log_joint(observations), axis=1)

    def sample_posterior(self, rng, observations):
        return {"k": _choose(rng, self._log_joint(observations))}

    def _log_joint(self, observations):
        k = np.arange(self.largest)
        likelihood = norm.logpdf(observations["y"][:, None], k, self.noise)
        return poisson.logpmf(k, self.rate) + likelihood


@dataclass(frozen=True)
class Regimes:
    """c ~ Categorical(weights); t ~ Normal(centres[c], spreads[c]); y_n ~ Normal(t, noise)."""

    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    centres: tuple[float, ...] = (-1.0, 0.0, 2.0)
    spreads: tuple[float, ...] = (1.0, 0.2, 0.6)
    noise: float = 1.0
    num_rows: int = 3
    num_latents: int = 2

    def sample_joint(self, rng, num):
        c = rng.choice(len(self.weights), p=self.weights, size=num)
        t = rng.normal(np.array(self.centres)[c], np.array(self.spreads)[c])
        return {"c": c, "t": t}, {"y": rng.normal(t[:, None], self.noise, (num, self.num_rows))}

    def log_posterior(self, latents, observations):
        c, t = latents["c"].astype(int), latents["t"]
        joint = np.log(self.weights)[c]
        joint = joint + norm.logpdf(t, np.array(self.centres)[c], np.array(self.spreads)[c])
        joint += norm.logpdf(observations["y"], t[:, None], self.noise).sum(1)
        return joint - self.log_evidence(observations)

    def log_evidence(self, observations):
        return logsumexp(self._log_joint_of_regimes(observations), axis=1)

    def sample_posterior(self, rng, observations):
        c = _choose(rng, self._log_joint_of_regimes(observations))
        mean, sd = self._posterior_of_t(observations)
        rows = np.arange(len(c))
        return {"c": c, "t": rng.normal(mean[rows, c], sd[c])}

    def _posterior_of_t(self, observations):
        precision = np.array(self.spreads) ** -2.0 + self.num_rows / self.noise**2
        total = np.array(self.centres) / np.square(self.spreads)
        sums = observations["y"].sum(1)[:, None] / self.noise**2
        return (total + sums) / precision, precision**-0.5

    def _log_joint_of_regimes(self, observations):
        """By Bayes at the posterior mean of t in each regime."""
        mean, sd = self._posterior_of_t(observations)
        likelihood = norm.logpdf(observations["y"][:, :, None], mean[:, None], self.noise).sum(1)
        prior = np.log(self.weights) + norm.logpdf(mean, self.centres, self.spreads)
        return prior + likelihood - norm.logpdf(0.0, 0.0, sd)


@dataclass(frozen=True)
class Switches:
    """Three switches b_d ~ Bernoulli(0.4), one sum y ~ Normal(b . sizes, noise): they compete."""

    probability: float = 0.4
    sizes: tuple[float, ...] = (1.0, 1.2, 2.1)
    noise: float = 0.4

    @property
    def num_latents(self):
        return len(self.sizes)

    def sample_joint(self, rng, num):
        b = rng.binomial(1, self.probability, size=(num, len(self.sizes)))
        return {"b": b}, {"y": rng.normal(b @ np.array(self.sizes), self.noise)}

    def log_posterior(self, latents, observations):
        b, y = latents["b"], observations["y"]
        joint = bernoulli.logpmf(b, self.probability).sum(1)
        joint += norm.logpdf(y, b @ np.array(self.sizes), self.noise)
        return joint - self.log_evidence(observations)

    def log_evidence(self, observations):
        return logsumexp(self._log_joint(observations), axis=1)

    def sample_posterior(self, rng, observations):
        return {"b": self._settings[_choose(rng, self._log_joint(observations))]}

    @cached_property
    def _settings(self):
        return np.array(list(product((0, 1), repeat=len(self.sizes))))

    def _log_joint(self, observations):
        prior = bernoulli.logpmf(self._settings, self.probability).sum(1)
        mean = self._settings @ np.array(self.sizes)
        return prior + norm.logpdf(observations["y"][:, None], mean, self.noise)


@dataclass(frozen=True)
class Outlier:
    """k ~ Categorical(uniform over the rows); y_j ~ Normal(0, spread if j = k else 1)."""

    num_rows: int = 8
    spread: float = 4.0
    num_latents: int = 1

    def sample_joint(self, rng, num):
        k = rng.integers(self.num_rows, size=num)
        scale = np.where(np.arange(self.num_rows) == k[:, None], self.spread, 1.0)
        return {"k": k}, {"y": scale * rng.normal(size=(num, self.num_rows))}

    def log_probs(self, observations):
        """Of every row, `(num, num_rows)`."""
        log_joint = self._log_joint(observations["y"])
        return log_joint - logsumexp(log_joint, axis=1, keepdims=True)

    def log_posterior(self, latents, observations):
        k = np.asarray(latents["k"]).astype(int)
        return np.take_along_axis(self.log_probs(observations), k[:, None], 1)[:, 0]

    def sample_posterior(self, rng, observations):
        return {"k": _choose(rng, self._log_joint(observations["y"]))}

    def log_evidence(self, observations):
        return logsumexp(self._log_joint(observations["y"]), axis=1)

    def _log_joint(self, y):
        gain = norm.logpdf(y, 0, self.spread) - norm.logpdf(y)
        return gain + norm.logpdf(y).sum(1, keepdims=True) - np.log(y.shape[1])
