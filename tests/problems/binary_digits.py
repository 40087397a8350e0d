"""An auto-encoder of scikit-learn's handwritten digits, black or white: both of its networks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp


@dataclass(frozen=True)
class BinaryDigits:
    """`z_i ~ Normal(0, I)`, `x_i ~ Bernoulli(sigmoid(f(z_i)))`; `q(z | x)` is a diagonal normal.

    One hidden layer of `tanh` in the decoder f and in the encoder, whose last layer gives the
    means and log deviations of q, after one another.

    Args:
        num_latents: Size of each latent.
        num_hidden: Width of the hidden layers.
        num_train: Number of images of 8 by 8 pixels to train on, of 1797.
    """

    num_latents: int = 20
    num_hidden: int = 100
    num_train: int = 898

    @cached_property
    def images(self) -> np.ndarray:
        """Pixels, 0 or 1, in an order drawn once, `(1797, 64)`."""
        from sklearn.datasets import load_digits

        data = load_digits().data > 7.5
        return data[np.random.default_rng(0).permutation(len(data))].astype(np.float32)

    @property
    def train(self) -> np.ndarray:
        return self.images[: self.num_train]

    @property
    def held_out(self) -> np.ndarray:
        return self.images[self.num_train :]

    def initial_parameters(self, seed: int) -> dict[str, np.ndarray]:
        """Where learning starts: layers in the order of use, weights `(num_in, num_out)`."""
        rng = np.random.default_rng(seed)
        sizes = {
            "encoder": (64, self.num_hidden, 2 * self.num_latents),
            "decoder": (self.num_latents, self.num_hidden, 64),
        }
        found = {}
        for name, (num_in, num_hidden, num_out) in sizes.items():
            for layer, (rows, columns) in enumerate([(num_in, num_hidden), (num_hidden, num_out)]):
                weight = rng.normal(size=(rows, columns)) / np.sqrt(rows)
                found[f"{name}_weight_{layer}"] = weight.astype(np.float32)
                found[f"{name}_bias_{layer}"] = np.zeros(columns, np.float32)
        return found

    def batches(self, seed: int, num_steps: int, batch_size: int) -> np.ndarray:
        """Rows of the training images for each step, without replacement within one."""
        rng = np.random.default_rng(seed)
        rows = [rng.permutation(self.num_train)[:batch_size] for _ in range(num_steps)]
        return np.stack(rows)

    def log_likelihood(self, parameters: dict[str, np.ndarray], num_particles: int) -> np.ndarray:
        """The bound with so many particles for each held-out image, in nats."""
        rng, x = np.random.default_rng(0), self.held_out
        mean, log_sd = np.split(_network(parameters, "encoder", x), 2, axis=-1)
        log_weights = np.empty((num_particles, len(x)))
        for particle in log_weights:
            noise = rng.normal(size=mean.shape).astype(np.float32)
            z = mean + np.exp(log_sd) * noise
            logits = _network(parameters, "decoder", z)
            particle[:] = (x * logits - np.logaddexp(0, logits)).sum(-1)
            particle += (0.5 * noise**2 + log_sd - 0.5 * z**2).sum(-1)
        return logsumexp(log_weights, axis=0) - np.log(num_particles)


def _network(parameters, name, values):
    first, second = (
        (parameters[f"{name}_weight_{layer}"], parameters[f"{name}_bias_{layer}"])
        for layer in (0, 1)
    )
    return np.tanh(values @ first[0] + first[1]) @ second[0] + second[1]
